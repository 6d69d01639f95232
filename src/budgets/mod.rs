//! What others may use of this node: named budgets, charged before the work is done and given back when it is over.
//!
//! In scope: the one table of budgets ([`table`]), charging by owner with a reserved share ([`Budget`]), rates ([`RateLimiter`]), and what is in
//! use now ([`Budgets::usage`]). Out of scope: what a call or a frame costs, which the place that serves it knows, and who its owner is.
//!
//! An owner is whoever can be held to account: an address until a certificate has proven an identity, then the identity or the member. A
//! budget has a bound for each owner and one for all together. A part of the latter is reserved: only charges of class [`Class::Reserved`] use
//! it, so that operators get in, the node publishes its own and urgent bulletins pass whatever others do.

mod rate;
pub mod table;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

pub use rate::{Rate, RateLimiter};
pub use table::Spec;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Everything else.
    Ordinary,
    /// Operators, own publishing, urgent bulletins.
    Reserved,
}

/// A charge that does not fit now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{budget}: {owner} uses {used} of {bound} {unit} and asks for {asked} more")]
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
    pub asked: u64,
}

/// One budget. Cheap to clone; clones share what is in use.
#[derive(Clone)]
pub struct Budget {
    shared: Arc<Shared>,
}

struct Shared {
    spec: &'static Spec,
    bounds: Bounds,
    state: Mutex<State>,
    /// Wakes those that wait for the bound of all.
    freed: Notify,
}

/// The bounds in force, in the unit of the [`Spec`].
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
    owners: HashMap<Owner, Account>,
}

#[derive(Default)]
struct Account {
    used: u64,
    /// Wakes those that wait for this owner's bound.
    freed: Arc<Notify>,
    waiting: usize,
}

/// What is in use of one budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The budget.
    pub spec: &'static Spec,
    /// Its bounds.
    pub bounds: Bounds,
    /// In use by all.
    pub used: u64,
    /// Most that was in use at once since the start.
    pub high_water: u64,
    /// Charges that did not fit since the start.
    pub denied: u64,
    /// Owners that use most, at most [`OWNERS_SHOWN_MAX`], the largest first.
    pub owners: Vec<(Owner, u64)>,
}

/// So great a part of its own bound an owner may use beyond it for what is [`Class::Reserved`].
const OWN_RESERVE_PART: u64 = 8;
/// Owners named in a [`Usage`]: who is at the bound is among them.
pub const OWNERS_SHOWN_MAX: usize = 5;

impl Budget {
    /// A budget with the bounds of its [`Spec`].
    #[must_use]
    pub fn new(spec: &'static Spec) -> Self {
        Self::with(spec, spec.bounds)
    }

    /// A budget with bounds from the configuration.
    #[must_use]
    pub fn with(spec: &'static Spec, bounds: Bounds) -> Self {
        // One of anything always fits: a budget of nothing would wait for ever.
        let total = bounds.total.max(1);
        let bounds =
            Bounds { total, per_owner: bounds.per_owner.clamp(1, total), reserved: bounds.reserved.min(total - 1) };
        Self { shared: Arc::new(Shared { spec, bounds, state: Mutex::default(), freed: Notify::new() }) }
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

    /// Charges `amount` to `owner` as soon as it fits; more than the bounds themselves is charged as the largest amount that can fit. Dropping
    /// the future charges nothing.
    pub async fn charge(&self, owner: &Owner, class: Class, amount: u64) -> Charge {
        let Bounds { total, per_owner, reserved } = self.shared.bounds;
        let usable = if class == Class::Reserved { total } else { total.saturating_sub(reserved) };
        let amount = amount.min(per_owner).min(usable);
        if let Ok(charge) = self.try_charge(owner, class, amount) {
            return charge;
        }
        let waiting = Waiting::new(&self.shared, owner);
        loop {
            let (own, all) = (waiting.freed.notified(), self.shared.freed.notified());
            tokio::pin!(own, all);
            // Registered before it is looked at: what is freed in between wakes.
            own.as_mut().enable();
            all.as_mut().enable();
            if let Ok(charge) = self.try_charge(owner, class, amount) {
                // There may be room for the next one, too.
                waiting.freed.notify_one();
                return charge;
            }
            tokio::select! {
                () = own => {}
                () = all => {}
            }
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
        self.shared.state.lock().owners.get(owner).map_or(0, |account| account.used)
    }

    /// What is in use.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let state = self.shared.state.lock();
        let mut owners: Vec<_> = state.owners.iter().filter(|(_, account)| account.used > 0).collect();
        owners.sort_by(|(a, x), (b, y)| y.used.cmp(&x.used).then_with(|| a.cmp(b)));
        let owners = owners.into_iter().take(OWNERS_SHOWN_MAX).map(|(owner, account)| (owner.clone(), account.used));
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

impl Shared {
    fn add(&self, owner: &Owner, class: Class, amount: u64) -> Result<(), OverBudget> {
        let Bounds { total, per_owner, reserved } = self.bounds;
        let usable = if class == Class::Reserved { total } else { total.saturating_sub(reserved) };
        if amount == 0 {
            return Ok(());
        }
        let mut state = self.state.lock();
        let own = state.owners.get(owner).map_or(0, |account| account.used);
        let over = |whose: String, used: u64, bound: u64| OverBudget {
            budget: self.spec.name,
            unit: self.spec.unit,
            owner: whose,
            used,
            bound,
            asked: amount,
        };
        // What an owner reads must not keep it from publishing.
        let own_bound = if class == Class::Reserved { per_owner + per_owner / OWN_RESERVE_PART } else { per_owner };
        let result = if own.saturating_add(amount) > own_bound {
            Err(over(owner.to_string(), own, own_bound))
        } else if state.used.saturating_add(amount) > usable {
            Err(over("all together".into(), state.used, usable))
        } else {
            Ok(())
        };
        if result.is_err() {
            state.denied += 1;
            return result;
        }
        state.used += amount;
        state.high_water = state.high_water.max(state.used);
        match state.owners.get_mut(owner) {
            Some(account) => account.used += amount,
            None => state.owners.entry(owner.clone()).or_default().used = amount,
        }
        Ok(())
    }

    fn give_back(&self, owner: &Owner, amount: u64) {
        let mut state = self.state.lock();
        state.used = state.used.saturating_sub(amount);
        if let Some(account) = state.owners.get_mut(owner) {
            account.used = account.used.saturating_sub(amount);
            account.freed.notify_one();
            if account.used == 0 && account.waiting == 0 {
                state.owners.remove(owner);
            }
        }
        drop(state);
        self.freed.notify_waiters();
    }
}

/// An owner's place among those that wait: while it lives, the account is not forgotten.
struct Waiting<'a> {
    shared: &'a Shared,
    owner: &'a Owner,
    freed: Arc<Notify>,
}

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared, owner: &'a Owner) -> Self {
        let mut state = shared.state.lock();
        let account = state.owners.entry(owner.clone()).or_default();
        account.waiting += 1;
        Self { shared, owner, freed: Arc::clone(&account.freed) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if let Some(account) = state.owners.get_mut(self.owner) {
            account.waiting = account.waiting.saturating_sub(1);
            if account.used == 0 && account.waiting == 0 {
                state.owners.remove(self.owner);
            }
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
        self.budget.shared.add(&self.owner, self.class, amount)?;
        self.amount += amount;
        Ok(())
    }

    /// Gives so much back; at most what is charged.
    pub fn shrink(&mut self, amount: u64) {
        let amount = amount.min(self.amount);
        self.amount -= amount;
        if amount > 0 {
            self.budget.shared.give_back(&self.owner, amount);
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
    pub fn new(bounds: impl Fn(&'static Spec) -> Bounds) -> Self {
        Self { all: Arc::new(table::BUDGETS.iter().map(|spec| Budget::with(spec, bounds(spec))).collect()) }
    }

    /// The budget of this [`Spec`], which must stand in the table.
    #[must_use]
    pub fn of(&self, spec: &'static Spec) -> &Budget {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use futures::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    static SPEC: Spec = Spec {
        name: "tests",
        unit: "bytes",
        of: "identity",
        bounds: Bounds { total: 100, per_owner: 60, reserved: 20 },
        memory_bytes: 1,
        key: None,
        reason: "",
    };

    fn identity(name: &str) -> Owner {
        Owner::Identity(name.into())
    }

    #[test]
    fn an_owner_stays_within_its_bound_and_all_within_theirs() {
        let budget = Budget::new(&SPEC);
        let (one, two) = (identity("one"), identity("two"));
        let held = budget.try_charge(&one, Class::Ordinary, 60).unwrap();
        let over = budget.try_charge(&one, Class::Ordinary, 1).err().unwrap();
        assert_eq!((over.owner.as_str(), over.used, over.bound), ("one", 60, 60));
        // What it holds does not keep it from publishing.
        drop(budget.try_charge(&one, Class::Reserved, 7).unwrap());
        assert_eq!(budget.try_charge(&one, Class::Reserved, 8).err().unwrap().bound, 67);
        let _more = budget.try_charge(&two, Class::Ordinary, 20).unwrap();
        let over = budget.try_charge(&two, Class::Ordinary, 1).err().unwrap();
        assert_eq!((over.owner.as_str(), over.bound), ("all together", 80));
        let reserved = budget.try_charge(&two, Class::Reserved, 20).unwrap();
        assert_eq!(budget.usage().used, 100);
        drop((held, reserved));
        let usage = budget.usage();
        assert_eq!((usage.used, usage.high_water, usage.denied), (20, 100, 3));
        assert_eq!(usage.owners, [(two, 20)], "who uses nothing is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_charges_go_on_in_turn_as_others_are_given_back() {
        let budget = Budget::new(&SPEC);
        let one = identity("one");
        let mut held = budget.try_charge(&one, Class::Ordinary, 60).unwrap();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let (budget, one) = (budget.clone(), one.clone());
                tokio::spawn(async move { budget.charge(&one, Class::Ordinary, 20).await.amount() })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(waiting.iter().all(|task| !task.is_finished()));
        held.shrink(20);
        for task in waiting {
            assert_eq!(tokio::time::timeout(Duration::from_secs(1), task).await.unwrap().unwrap(), 20);
        }
        drop(held);
        assert!(budget.usage().owners.is_empty());
        // What could never fit is charged as much as can.
        assert_eq!(budget.charge(&one, Class::Ordinary, 1_000).await.amount(), 60);
    }

    #[tokio::test]
    async fn a_charge_that_is_given_up_while_it_waits_leaves_nothing_behind() {
        let budget = Budget::new(&SPEC);
        let (one, two) = (identity("one"), identity("two"));
        let held = budget.try_charge(&one, Class::Ordinary, 60).unwrap();
        let _rest = budget.try_charge(&two, Class::Ordinary, 20).unwrap();
        assert!(budget.charge(&one, Class::Ordinary, 1).now_or_never().is_none());
        assert!(budget.charge(&identity("three"), Class::Ordinary, 1).now_or_never().is_none());
        drop(held);
        assert_eq!(budget.usage().owners, [(two, 20)]);
        assert_eq!(budget.usage().used, 20);
    }

    #[test]
    fn budgets_of_memory_shrink_together_into_what_the_configuration_allows() {
        let table = Budgets::default().memory_bytes_max();
        assert_eq!(Budgets::within(2 * table).memory_bytes_max(), table);
        let small = Budgets::within(table / 4);
        assert!(small.memory_bytes_max() <= table / 4 && small.memory_bytes_max() > table / 5);
        let of = |budgets: &Budgets| budgets.of(&table::API_REQUEST_BYTES).bounds();
        assert_eq!(of(&small).total, of(&Budgets::default()).total / 4);
    }

    proptest! {
        #[test]
        fn what_is_in_use_is_the_sum_of_live_charges(steps in prop::collection::vec((0u8..4, 0u64..90, any::<bool>(), any::<bool>()), 0..200)) {
            let budget = Budget::new(&SPEC);
            let mut live: Vec<Charge> = Vec::new();
            for (owner, amount, reserved, give_back) in steps {
                if give_back && !live.is_empty() {
                    drop(live.swap_remove(usize::try_from(amount).unwrap() % live.len()));
                } else {
                    let class = if reserved { Class::Reserved } else { Class::Ordinary };
                    live.extend(budget.try_charge(&identity(&owner.to_string()), class, amount));
                }
                let sum: u64 = live.iter().map(Charge::amount).sum();
                prop_assert_eq!(budget.usage().used, sum);
                prop_assert!(sum <= 100);
                prop_assert!((0..4u8).all(|owner| budget.used_by(&identity(&owner.to_string())) <= 67));
            }
            live.clear();
            prop_assert!(budget.usage().owners.is_empty());
        }
    }
}
