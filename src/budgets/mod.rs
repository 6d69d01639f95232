//! What others may use of this node: named budgets, charged before the work is done and given back when it is over.
//!
//! In scope: the one table of budgets ([`table`]), charging by owner with a reserved share ([`Budget`]), rates ([`RateLimiter`]), and what is in
//! use now ([`Budgets::usage`]). Out of scope: what a call or a frame costs, which the place that serves it knows, and who its owner is.
//!
//! An owner is whoever can be held to account: an address until a certificate has proven an identity, then the identity or the member. A
//! budget has a bound for each owner and one for all together. A part of the latter is reserved: only charges of class [`Class::Reserved`] use
//! it, and only of owners that hold little, so that operators get in, the node publishes its own and urgent bulletins pass whatever others do.

mod fair_queue;
mod rate;
pub mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use rate::{Rate, RateLimiter, TokenBucket};
pub use table::BudgetSpec;

use fair_queue::{FairQueue, GrantDecision};

/// Who is charged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// Nobody has shown who they are: an IPv4 address, or an IPv6 network of 64 bits.
    Address(Arc<str>),
    /// A person or system of this member: the path of its SPIFFE ID.
    Identity(Arc<str>),
    /// Another member: its code.
    Member(Arc<str>),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Address(name) | Self::Identity(name) | Self::Member(name)) = self;
        f.write_str(name)
    }
}

/// Whether a charge may use the reserved share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Everything else.
    Ordinary,
    /// Operators, own publishing, urgent bulletins; of calls that need no grant, those of whoever has one.
    Reserved,
}

/// A charge that does not fit now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{budget}: {owner} uses {used} of {bound} {unit} and asks for {requested} more")]
pub struct OverBudget {
    /// Name of the budget.
    pub budget: &'static str,
    /// Unit of the numbers.
    pub unit: &'static str,
    /// Whose bound was reached: the owner's name, or "all together".
    pub owner: String,
    /// In use.
    pub used: u64,
    /// The bound.
    pub bound: u64,
    /// What was asked for.
    pub requested: u64,
}

/// One budget. Cheap to clone; clones share what is in use.
#[derive(Clone)]
pub struct Budget {
    shared: Arc<Shared>,
}

struct Shared {
    spec: &'static BudgetSpec,
    bounds: Bounds,
    state: Mutex<State>,
}

/// The bounds in force, in the unit of the [`BudgetSpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of all owners together.
    pub total: u64,
    /// Of one owner.
    pub per_owner: u64,
    /// The part of `total` that only [`Class::Reserved`] may use.
    pub reserved: u64,
}

#[derive(Default)]
struct State {
    used: u64,
    high_water: u64,
    denied: u64,
    /// What each owner uses; who uses nothing is forgotten.
    owners: HashMap<Owner, u64, RandomState>,
    /// By owner and class: what an owner may read does not go before what it publishes.
    waiting: FairQueue<(Owner, Class), WaitingCharge>,
    /// Whether something that waits does not fit the bound of all: ordinary, and what may use the reserve.
    full: [bool; 2],
}

/// A charge that waits.
struct WaitingCharge {
    amount: u64,
    granted: oneshot::Sender<Charge>,
}

/// What is in use of one budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The budget.
    pub spec: &'static BudgetSpec,
    /// Its bounds.
    pub bounds: Bounds,
    /// In use by all.
    pub used: u64,
    /// Most that was in use at once since the start.
    pub high_water: u64,
    /// Charges that did not fit since the start.
    pub denied: u64,
    /// Owners that use most, at most [`USAGE_OWNERS_MAX`], the largest first.
    pub owners: Vec<(Owner, u64)>,
}

/// So great a part of its own bound an owner may use beyond it for what is [`Class::Reserved`].
const OWN_RESERVE_PART: u64 = 8;
/// Owners named in a [`Usage`]: who is at the bound is among them.
pub const USAGE_OWNERS_MAX: usize = 5;

impl Budget {
    /// A budget with the bounds of its [`BudgetSpec`].
    #[must_use]
    pub fn new(spec: &'static BudgetSpec) -> Self {
        Self::with(spec, spec.bounds)
    }

    /// A budget with bounds from the configuration.
    #[must_use]
    pub fn with(spec: &'static BudgetSpec, bounds: Bounds) -> Self {
        // One of anything always fits: a budget of nothing would wait for ever.
        let total = bounds.total.max(1);
        let bounds =
            Bounds { total, per_owner: bounds.per_owner.clamp(1, total), reserved: bounds.reserved.min(total - 1) };
        Self { shared: Arc::new(Shared { spec, bounds, state: Mutex::default() }) }
    }

    /// Charges `amount` to `owner`, or says which bound it does not fit.
    ///
    /// # Errors
    /// [`OverBudget`]; nothing is charged then.
    pub fn try_charge(&self, owner: &Owner, class: Class, amount: u64) -> Result<Charge, OverBudget> {
        let mut charge = Charge { budget: self.clone(), owner: owner.clone(), class, amount: 0 };
        charge.grow(amount)?;
        Ok(charge)
    }

    /// As [`Self::try_charge`], but never before what the same owner has waiting, nor before what waits for the bound of all.
    ///
    /// # Errors
    /// [`OverBudget`]; nothing is charged then.
    pub fn try_charge_in_turn(&self, owner: &Owner, class: Class, amount: u64) -> Result<Charge, OverBudget> {
        let mut state = self.shared.state.lock();
        let others_wait = state.full[usize::from(class == Class::Reserved)];
        if others_wait || !state.waiting.is_empty() && state.waiting.has(&(owner.clone(), class)) {
            state.denied += 1;
            return Err(self.shared.over(owner, state.used_by(owner), self.shared.bounds.per_owner, amount));
        }
        self.shared.add(&mut state, owner, class, amount)?;
        drop(state);
        Ok(Charge { budget: self.clone(), owner: owner.clone(), class, amount })
    }

    /// Charges `amount` to `owner` as soon as it fits and its turn has come; more than the bounds themselves is charged as the largest amount
    /// that can fit. Dropping the future charges nothing.
    pub async fn charge(&self, owner: &Owner, class: Class, amount: u64) -> Charge {
        let amount = amount.min(self.shared.bounds.per_owner).min(self.shared.usable(class));
        if let Ok(charge) = self.try_charge_in_turn(owner, class, amount) {
            return charge;
        }
        let (key, (granted, waits)) = ((owner.clone(), class), oneshot::channel());
        let guard = {
            let id = self.shared.state.lock().waiting.push(&key, WaitingCharge { amount, granted });
            WaitGuard { budget: self, key: &key, id }
        };
        // There may be room: what others wait for is not what this one asks for.
        self.grant();
        let charge = waits.await;
        drop(guard);
        charge.unwrap_or_else(|_| Charge { budget: self.clone(), owner: owner.clone(), class, amount: 0 })
    }

    /// Hands what there is room for to those that wait, in turn.
    fn grant(&self) {
        let granted = {
            let mut state = self.shared.state.lock();
            if state.waiting.is_empty() {
                state.full = [false; 2];
                return;
            }
            self.shared.grant(&mut state)
        };
        for ((owner, class), WaitingCharge { amount, granted }) in granted {
            // Whoever has given up since drops it, and so gives it back.
            drop(granted.send(Charge { budget: self.clone(), owner, class, amount }));
        }
    }

    fn release(&self, owner: &Owner, amount: u64) {
        let mut state = self.shared.state.lock();
        state.used = state.used.saturating_sub(amount);
        if let Some(used) = state.owners.get_mut(owner) {
            *used = used.saturating_sub(amount);
            if *used == 0 {
                state.owners.remove(owner);
            }
        }
        let waiting = !state.waiting.is_empty();
        drop(state);
        if waiting {
            self.grant();
        }
    }

    /// The bounds in force.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.shared.bounds
    }

    /// What `owner` uses.
    #[must_use]
    pub fn used_by(&self, owner: &Owner) -> u64 {
        self.shared.state.lock().used_by(owner)
    }

    /// Whether a charge waits for what `owner` holds: another of its own, or one that does not fit the bound of all.
    #[must_use]
    pub fn blocks_waiters(&self, owner: &Owner) -> bool {
        let state = self.shared.state.lock();
        let of_own = |class| state.waiting.has(&(owner.clone(), class));
        !state.waiting.is_empty() && (state.full.contains(&true) || of_own(Class::Ordinary) || of_own(Class::Reserved))
    }

    /// What is in use.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let state = self.shared.state.lock();
        let mut owners: Vec<_> = state.owners.iter().collect();
        owners.sort_by(|(a, x), (b, y)| y.cmp(x).then_with(|| a.cmp(b)));
        let owners = owners.into_iter().take(USAGE_OWNERS_MAX).map(|(owner, used)| (owner.clone(), *used));
        Usage {
            spec: self.shared.spec,
            bounds: self.shared.bounds,
            used: state.used,
            high_water: state.high_water,
            denied: state.denied,
            owners: owners.collect(),
        }
    }
}

impl State {
    fn used_by(&self, owner: &Owner) -> u64 {
        self.owners.get(owner).copied().unwrap_or_default()
    }
}

impl Shared {
    /// What all together may use.
    fn usable(&self, class: Class) -> u64 {
        if class == Class::Reserved {
            self.bounds.total
        } else {
            self.bounds.total.saturating_sub(self.bounds.reserved)
        }
    }

    /// What an owner may use. What it reads must not keep it from publishing.
    fn own_bound(&self, class: Class) -> u64 {
        let own = self.bounds.per_owner;
        if class == Class::Reserved { own + own / OWN_RESERVE_PART } else { own }
    }

    /// The same, less where only the reserve is left.
    fn own_bound_now(&self, state: &State, class: Class, amount: u64) -> u64 {
        let into_reserve =
            self.spec.reserve_shares > 1 && state.used.saturating_add(amount) > self.usable(Class::Ordinary);
        if class == Class::Reserved && into_reserve { self.reserve_share() } else { self.own_bound(class) }
    }

    /// What an owner may use in all where only the reserve is left: whoever holds more has had its share before.
    fn reserve_share(&self) -> u64 {
        self.bounds.reserved.div_ceil(self.spec.reserve_shares)
    }

    fn over(&self, whose: impl fmt::Display, used: u64, bound: u64, requested: u64) -> OverBudget {
        OverBudget { budget: self.spec.name, unit: self.spec.unit, owner: whose.to_string(), used, bound, requested }
    }

    fn add(&self, state: &mut State, owner: &Owner, class: Class, amount: u64) -> Result<(), OverBudget> {
        if amount == 0 {
            return Ok(());
        }
        let own = state.used_by(owner);
        let over = if own.saturating_add(amount) > self.own_bound_now(state, class, amount) {
            self.over(owner, own, self.own_bound_now(state, class, amount), amount)
        } else if state.used.saturating_add(amount) > self.usable(class) {
            self.over("all together", state.used, self.usable(class), amount)
        } else {
            state.used += amount;
            state.high_water = state.high_water.max(state.used);
            match state.owners.get_mut(owner) {
                Some(used) => *used += amount,
                None => drop(state.owners.insert(owner.clone(), amount)),
            }
            return Ok(());
        };
        state.denied += 1;
        Err(over)
    }

    /// Charges those that wait and fit. Where one does not fit the bound of all, none of its class goes before it: small ones would else keep a
    /// large one out for ever.
    fn grant(&self, state: &mut State) -> Vec<((Owner, Class), WaitingCharge)> {
        let mut waiting = std::mem::take(&mut state.waiting);
        let (denied, mut full) = (state.denied, [false; 2]);
        let granted = waiting.grant(|(owner, class), WaitingCharge { amount, .. }| {
            let own = state.used_by(owner).saturating_add(*amount) <= self.own_bound_now(state, *class, *amount);
            let full = &mut full[usize::from(*class == Class::Reserved)];
            if !own || *full {
                return GrantDecision::Waits;
            }
            *full = self.add(state, owner, *class, *amount).is_err();
            if *full { GrantDecision::Waits } else { GrantDecision::Granted }
        });
        (state.waiting, state.denied, state.full) = (waiting, denied, full);
        granted
    }
}

/// The place of one that waits: dropping it gives the place up.
struct WaitGuard<'a> {
    budget: &'a Budget,
    key: &'a (Owner, Class),
    id: u64,
}

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        let removed = self.budget.shared.state.lock().waiting.remove(self.key, self.id);
        if removed.is_some() {
            // It may have kept others waiting.
            self.budget.grant();
        }
    }
}

/// What is charged to an owner. Dropping it gives it back.
#[must_use = "dropping a charge gives it back"]
pub struct Charge {
    budget: Budget,
    owner: Owner,
    class: Class,
    amount: u64,
}

impl Charge {
    /// Charges so much more.
    ///
    /// # Errors
    /// [`OverBudget`]; what was charged before stays.
    pub fn grow(&mut self, amount: u64) -> Result<(), OverBudget> {
        let shared = &self.budget.shared;
        shared.add(&mut shared.state.lock(), &self.owner, self.class, amount)?;
        self.amount += amount;
        Ok(())
    }

    /// Gives so much back; at most what is charged.
    pub fn shrink(&mut self, amount: u64) {
        let amount = amount.min(self.amount);
        self.amount -= amount;
        if amount > 0 {
            self.budget.release(&self.owner, amount);
        }
    }

    /// Parts so much off, at most what is charged, to be given back on its own.
    pub fn split(&mut self, amount: u64) -> Self {
        let amount = amount.min(self.amount);
        self.amount -= amount;
        Self { budget: self.budget.clone(), owner: self.owner.clone(), class: self.class, amount }
    }

    /// What is charged.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.amount
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink(self.amount);
    }
}

/// All budgets of a node, by the name in the [`table`]. Cheap to clone.
#[derive(Clone)]
pub struct Budgets {
    all: Arc<Vec<Budget>>,
}

impl Default for Budgets {
    fn default() -> Self {
        Self::new(|spec| spec.bounds)
    }
}

impl Budgets {
    /// Every budget of the table, with bounds chosen by the configuration.
    #[must_use]
    pub fn new(bounds: impl Fn(&'static BudgetSpec) -> Bounds) -> Self {
        Self { all: Arc::new(table::BUDGETS.iter().map(|spec| Budget::with(spec, bounds(spec))).collect()) }
    }

    /// The budget of this [`BudgetSpec`], which must stand in the table.
    #[must_use]
    pub fn of(&self, spec: &'static BudgetSpec) -> &Budget {
        let found = self.all.iter().find(|budget| budget.shared.spec.name == spec.name);
        found.expect("every budget that code names stands in the table: a test compares them")
    }

    /// What is in use of each, in the order of the table.
    #[must_use]
    pub fn usage(&self) -> Vec<Usage> {
        self.all.iter().map(Budget::usage).collect()
    }

    /// The table's budgets within so many bytes of memory: where they would come to more, those of memory shrink alike.
    #[must_use]
    pub fn within(memory_bytes: u64) -> Self {
        let sum = Self::default().memory_bytes_max().max(1);
        let shrink = |amount: u64| {
            let shrunk = u128::from(amount) * u128::from(memory_bytes.min(sum)) / u128::from(sum);
            u64::try_from(shrunk).unwrap_or(amount)
        };
        Self::new(|spec| match spec.memory_bytes {
            0 => spec.bounds,
            _ => Bounds {
                total: shrink(spec.bounds.total),
                per_owner: shrink(spec.bounds.per_owner),
                reserved: shrink(spec.bounds.reserved),
            },
        })
    }

    /// Bytes of memory that all budgets together may hold at once.
    #[must_use]
    pub fn memory_bytes_max(&self) -> u64 {
        self.all.iter().map(|budget| budget.shared.bounds.total.saturating_mul(budget.shared.spec.memory_bytes)).sum()
    }
}
