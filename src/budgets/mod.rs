//! Budgets: named bounds on what callers and peers use of this node. Work is charged before it is
//! done, and the charge is released when it ends.
//!
//! In scope: the table of budgets ([`table`]), charges by owner with a reserved share ([`Budget`]),
//! rates ([`RateLimiter`]), and current usage ([`Budgets::usage`]). Out of scope: what a call or
//! frame costs and who its owner is; the code that serves it decides.
//!
//! An owner is the party that is held to account: an address until a certificate has proven an
//! identity, then the identity or the member. A budget has a bound for each owner and a total for
//! all owners. Part of the total is reserved: only charges of class [`Class::Reserved`] may use it,
//! and only from owners that use little. So operators can connect, the node can publish, and urgent
//! bulletins pass, whatever the load from others.

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

/// The party that is charged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// An unauthenticated party: an IPv4 address, or an IPv6 network of 64 bits.
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
    /// It may not.
    Ordinary,
    /// It may: operators, publishing, urgent bulletins, and calls that need no grant from callers
    /// with a grant.
    Reserved,
}

/// A charge that does not fit now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{budget}: {owner}: {used} of {bound} {unit} in use, {requested} more requested")]
pub struct OverBudget {
    /// Name of the budget.
    pub budget: &'static str,
    /// Unit of the numbers.
    pub unit: &'static str,
    /// The owner whose bound was reached, or "all together" for the total.
    pub owner: String,
    /// Units in use.
    pub used: u64,
    /// The bound.
    pub bound: u64,
    /// Units requested.
    pub requested: u64,
}

/// One budget. Cheap to clone; clones share the usage.
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
    /// Units that each owner uses. Owners that use nothing are removed.
    owners: HashMap<Owner, u64, RandomState>,
    /// By owner and class, so that an owner's reads do not go before its publishing.
    waiting: FairQueue<(Owner, Class), WaitingCharge>,
    /// Whether a waiting charge does not fit the total: of class ordinary, and of class reserved.
    full: [bool; 2],
}

/// A charge that waits.
struct WaitingCharge {
    amount: u64,
    granted: oneshot::Sender<Charge>,
}

/// Usage of one budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The budget.
    pub spec: &'static BudgetSpec,
    /// Its bounds.
    pub bounds: Bounds,
    /// Units in use by all owners.
    pub used: u64,
    /// Largest number of units in use at once since the start.
    pub high_water: u64,
    /// Charges since the start that did not fit.
    pub denied: u64,
    /// Owners that use most, largest first, at most [`USAGE_OWNERS_MAX`].
    pub owners: Vec<(Owner, u64)>,
}

/// For [`Class::Reserved`] an owner may exceed its own bound by one part in this many.
const OWN_RESERVE_PART: u64 = 8;
/// The owner in an [`OverBudget`] whose total was reached.
const ALL_OWNERS: &str = "all together";
/// Owners listed in a [`Usage`]. Owners at their bound are among them.
pub const USAGE_OWNERS_MAX: usize = 5;

impl Budget {
    /// Creates a budget with the bounds of its [`BudgetSpec`].
    #[must_use]
    pub fn new(spec: &'static BudgetSpec) -> Self {
        Self::with(spec, spec.bounds)
    }

    /// Creates a budget with bounds from the configuration.
    #[must_use]
    pub fn with(spec: &'static BudgetSpec, bounds: Bounds) -> Self {
        // One unit always fits. With a bound of 0 a charge would wait forever.
        let total = bounds.total.max(1);
        let bounds =
            Bounds { total, per_owner: bounds.per_owner.clamp(1, total), reserved: bounds.reserved.min(total - 1) };
        Self { shared: Arc::new(Shared { spec, bounds, state: Mutex::default() }) }
    }

    /// Charges `amount` to `owner`, or fails with the bound that it does not fit.
    ///
    /// # Errors
    /// [`OverBudget`]. Nothing is charged.
    pub fn try_charge(&self, owner: &Owner, class: Class, amount: u64) -> Result<Charge, OverBudget> {
        let mut charge = Charge { budget: self.clone(), owner: owner.clone(), class, amount: 0 };
        charge.grow(amount)?;
        Ok(charge)
    }

    /// Like [`Self::try_charge`], but also fails while another charge of the same owner and class
    /// waits, or a charge waits for the total.
    ///
    /// # Errors
    /// [`OverBudget`]. Nothing is charged.
    pub fn try_charge_in_turn(&self, owner: &Owner, class: Class, amount: u64) -> Result<Charge, OverBudget> {
        let mut state = self.shared.state.lock();
        let total_blocked = state.full[usize::from(class == Class::Reserved)];
        if total_blocked || !state.waiting.is_empty() && state.waiting.has(&(owner.clone(), class)) {
            state.denied += 1;
            let error = if total_blocked {
                self.shared.over_budget(ALL_OWNERS, state.used, self.shared.usable(class), amount)
            } else {
                self.shared.over_budget(owner, state.used_by(owner), self.shared.own_bound(class), amount)
            };
            return Err(error);
        }
        self.shared.add(&mut state, owner, class, amount)?;
        drop(state);
        Ok(Charge { budget: self.clone(), owner: owner.clone(), class, amount })
    }

    /// Charges `amount` to `owner`, in turn, as soon as it fits. An amount above the bounds is
    /// charged as the largest amount that can fit. Dropping the future charges nothing.
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
        // There may be room already: the other waiting charges may be blocked by other bounds.
        self.grant();
        let charge = waits.await;
        drop(guard);
        charge.unwrap_or_else(|_| Charge { budget: self.clone(), owner: owner.clone(), class, amount: 0 })
    }

    /// Grants waiting charges that fit, in turn.
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
            // If the receiver has gone, dropping the charge releases it.
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

    /// Returns the bounds in force.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.shared.bounds
    }

    /// Returns the units that `owner` uses.
    #[must_use]
    pub fn used_by(&self, owner: &Owner) -> u64 {
        self.shared.state.lock().used_by(owner)
    }

    /// Returns whether a charge waits for units that `owner` uses: another charge of its own, or
    /// one that does not fit the total while `owner` uses at least an even share of it. An owner
    /// that uses little is not blamed for what others use up.
    #[must_use]
    pub fn blocks_waiters(&self, owner: &Owner) -> bool {
        let state = self.shared.state.lock();
        let of_own = |class| state.waiting.has(&(owner.clone(), class));
        let even_share = || state.used / state.owners.len().max(1) as u64;
        !state.waiting.is_empty()
            && (of_own(Class::Ordinary)
                || of_own(Class::Reserved)
                || state.full.contains(&true) && state.used_by(owner) >= even_share())
    }

    /// Returns the usage.
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
    /// Returns the total for a class.
    fn usable(&self, class: Class) -> u64 {
        if class == Class::Reserved {
            self.bounds.total
        } else {
            self.bounds.total.saturating_sub(self.bounds.reserved)
        }
    }

    /// Returns the bound of one owner for a class. It is higher for the reserved class, so that an
    /// owner's reads do not block its publishing.
    fn own_bound(&self, class: Class) -> u64 {
        let own = self.bounds.per_owner;
        if class == Class::Reserved { own + own / OWN_RESERVE_PART } else { own }
    }

    /// Returns the bound of one owner, or its share of the reserve if the charge would use the
    /// reserve.
    fn own_bound_now(&self, state: &State, class: Class, amount: u64) -> u64 {
        let into_reserve =
            self.spec.reserve_shares > 1 && state.used.saturating_add(amount) > self.usable(Class::Ordinary);
        if class == Class::Reserved && into_reserve { self.reserve_share() } else { self.own_bound(class) }
    }

    /// Returns the units that an owner may use in all when the charge uses the reserve. An owner
    /// that uses more already had its share.
    fn reserve_share(&self) -> u64 {
        self.bounds.reserved.div_ceil(self.spec.reserve_shares)
    }

    fn over_budget(&self, whose: impl fmt::Display, used: u64, bound: u64, requested: u64) -> OverBudget {
        OverBudget { budget: self.spec.name, unit: self.spec.unit, owner: whose.to_string(), used, bound, requested }
    }

    fn add(&self, state: &mut State, owner: &Owner, class: Class, amount: u64) -> Result<(), OverBudget> {
        if amount == 0 {
            return Ok(());
        }
        let own = state.used_by(owner);
        let error = if own.saturating_add(amount) > self.own_bound_now(state, class, amount) {
            self.over_budget(owner, own, self.own_bound_now(state, class, amount), amount)
        } else if state.used.saturating_add(amount) > self.usable(class) {
            self.over_budget(ALL_OWNERS, state.used, self.usable(class), amount)
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
        Err(error)
    }

    /// Grants waiting charges that fit. After one that does not fit the total, no other charge of
    /// its class is granted: otherwise small charges would starve a large one.
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

/// The place of a waiting charge in the queue. Dropping it removes the charge.
struct WaitGuard<'a> {
    budget: &'a Budget,
    key: &'a (Owner, Class),
    id: u64,
}

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        let removed = self.budget.shared.state.lock().waiting.remove(self.key, self.id);
        if removed.is_some() {
            // The removed charge may have blocked others.
            self.budget.grant();
        }
    }
}

/// Units charged to an owner. Dropping it releases them.
#[must_use = "dropping a charge releases it"]
pub struct Charge {
    budget: Budget,
    owner: Owner,
    class: Class,
    amount: u64,
}

impl Charge {
    /// Charges `amount` more.
    ///
    /// # Errors
    /// [`OverBudget`]. The previous amount remains charged.
    pub fn grow(&mut self, amount: u64) -> Result<(), OverBudget> {
        let shared = &self.budget.shared;
        shared.add(&mut shared.state.lock(), &self.owner, self.class, amount)?;
        self.amount += amount;
        Ok(())
    }

    /// Releases `amount`, at most what is charged.
    pub fn shrink(&mut self, amount: u64) {
        let amount = amount.min(self.amount);
        self.amount -= amount;
        if amount > 0 {
            self.budget.release(&self.owner, amount);
        }
    }

    /// Splits `amount` off, at most what is charged, as a charge of its own.
    pub fn split(&mut self, amount: u64) -> Self {
        let amount = amount.min(self.amount);
        self.amount -= amount;
        Self { budget: self.budget.clone(), owner: self.owner.clone(), class: self.class, amount }
    }

    /// Returns the units charged.
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

/// All budgets of a node, by their names in the [`table`]. Cheap to clone.
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
    /// Creates every budget of the table, with bounds from the configuration.
    #[must_use]
    pub fn new(bounds: impl Fn(&'static BudgetSpec) -> Bounds) -> Self {
        Self { all: Arc::new(table::BUDGETS.iter().map(|spec| Budget::with(spec, bounds(spec))).collect()) }
    }

    /// Returns the budget of a [`BudgetSpec`], which must be in the table.
    #[must_use]
    pub fn of(&self, spec: &'static BudgetSpec) -> &Budget {
        let found = self.all.iter().find(|budget| budget.shared.spec.name == spec.name);
        found.expect("every BudgetSpec is in BUDGETS: a test compares them")
    }

    /// Returns the usage of each budget, in the order of the table.
    #[must_use]
    pub fn usage(&self) -> Vec<Usage> {
        self.all.iter().map(Budget::usage).collect()
    }

    /// Creates the table's budgets within `memory_bytes`. If they need more, all budgets of memory
    /// shrink by the same factor.
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

    /// Returns the bytes of memory that all budgets together may use at once.
    #[must_use]
    pub fn memory_bytes_max(&self) -> u64 {
        self.all.iter().map(|budget| budget.shared.bounds.total.saturating_mul(budget.shared.spec.memory_bytes)).sum()
    }
}
