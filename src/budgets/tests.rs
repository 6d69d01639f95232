//! Charges, reserves, and the order of waiting charges.

#![allow(clippy::unwrap_used)]
use std::time::Duration;

use futures::FutureExt as _;
use proptest::prelude::*;

use super::*;

static SPEC: BudgetSpec = BudgetSpec {
    name: "tests",
    unit: "bytes",
    of: "identity",
    bounds: Bounds { total: 100, per_owner: 60, reserved: 20 },
    reserve_shares: 8,
    memory_bytes: 1,
    reason: "",
};

fn identity(name: &str) -> Owner {
    Owner::Identity(name.into())
}

#[test]
fn budget_bounds_each_owner_and_the_total() {
    let budget = Budget::new(&SPEC);
    let (one, two) = (identity("one"), identity("two"));
    let held = budget.try_charge(&one, Class::Ordinary, 60).unwrap();
    let error = budget.try_charge(&one, Class::Ordinary, 1).err().unwrap();
    assert_eq!((error.owner.as_str(), error.used, error.bound), ("one", 60, 60));
    // Its ordinary charges do not block its publishing.
    drop(budget.try_charge(&one, Class::Reserved, 7).unwrap());
    assert_eq!(budget.try_charge(&one, Class::Reserved, 8).err().unwrap().bound, 67);
    let _more = budget.try_charge(&two, Class::Ordinary, 20).unwrap();
    let error = budget.try_charge(&two, Class::Ordinary, 1).err().unwrap();
    assert_eq!((error.owner.as_str(), error.bound), ("all together", 80));
    // An owner that uses much may not use the reserve.
    let error = budget.try_charge(&two, Class::Reserved, 1).err().unwrap();
    assert_eq!((error.owner.as_str(), error.bound), ("two", 3));
    let reserved: Vec<_> =
        (0..6).map(|n| budget.try_charge(&identity(&n.to_string()), Class::Reserved, 3).unwrap()).collect();
    assert_eq!(budget.usage().used, 98);
    drop((held, reserved));
    let usage = budget.usage();
    assert_eq!((usage.used, usage.high_water, usage.denied), (20, 98, 4));
    assert_eq!(usage.owners, [(two, 20)], "owners without usage are removed");
}

#[tokio::test]
async fn owner_blocks_waiters_by_its_own_charges_or_by_a_large_share_of_the_total() {
    let budget = Budget::new(&SPEC);
    let (large, small, third) = (identity("large"), identity("small"), identity("third"));
    let held = budget.try_charge(&large, Class::Ordinary, 60).unwrap();
    let _little = budget.try_charge(&small, Class::Ordinary, 10).unwrap();
    assert!(!budget.blocks_waiters(&large), "no charge waits");
    let mut own = std::pin::pin!(budget.charge(&large, Class::Ordinary, 5));
    assert!(own.as_mut().now_or_never().is_none());
    assert!(budget.blocks_waiters(&large) && !budget.blocks_waiters(&small));
    drop(held);
    let _own = own.await;
    let _held = budget.try_charge(&large, Class::Ordinary, 50).unwrap();
    let mut other = std::pin::pin!(budget.charge(&third, Class::Ordinary, 20));
    assert!(other.as_mut().now_or_never().is_none(), "the total is used up");
    assert!(budget.blocks_waiters(&large) && !budget.blocks_waiters(&small));
}

#[tokio::test(start_paused = true)]
async fn waiting_charges_are_granted_in_order_as_others_are_released() {
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
    // An amount that can never fit is charged as the largest amount that can.
    assert_eq!(budget.charge(&one, Class::Ordinary, 1_000).await.amount(), 60);
}

#[tokio::test(start_paused = true)]
async fn owner_with_many_waiting_charges_does_not_block_another() {
    let budget = Budget::new(&SPEC);
    let (many, few) = (identity("many"), identity("few"));
    let mut held = vec![budget.try_charge(&many, Class::Ordinary, 40).unwrap()];
    let spawn = |owner: &Owner, amount| {
        let (budget, owner) = (budget.clone(), owner.clone());
        tokio::spawn(async move { budget.charge(&owner, Class::Ordinary, amount).await })
    };
    // One charge that does not fit, then a thousand that would fit beside the current usage.
    let mut flood: Vec<_> = (0..1_000).map(|_| spawn(&many, 41)).collect();
    let alone = spawn(&few, 60);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(!alone.is_finished() && !flood.first().unwrap().is_finished());
    let error = budget.try_charge_in_turn(&identity("third"), Class::Ordinary, 1).err().unwrap();
    assert_eq!((error.owner.as_str(), error.used, error.bound), ("all together", 40, 80), "others wait for the total");
    held.clear();
    let first = tokio::time::timeout(Duration::from_secs(1), flood.remove(0)).await.unwrap().unwrap();
    drop(first);
    assert_eq!(tokio::time::timeout(Duration::from_secs(1), alone).await.unwrap().unwrap().amount(), 60);
    flood.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn charge_waiting_for_its_owner_bound_blocks_no_other_owner() {
    let budget = Budget::new(&SPEC);
    let (one, two) = (identity("one"), identity("two"));
    let held = budget.try_charge(&one, Class::Ordinary, 60).unwrap();
    let mut waits = Box::pin(budget.charge(&one, Class::Ordinary, 10));
    assert!(waits.as_mut().now_or_never().is_none());
    let denied = budget.usage().denied;
    drop(budget.try_charge_in_turn(&two, Class::Ordinary, 10).unwrap());
    drop(budget.try_charge_in_turn(&one, Class::Reserved, 5).unwrap());
    assert_eq!(budget.usage().denied, denied);
    assert!(budget.try_charge_in_turn(&one, Class::Ordinary, 1).is_err(), "charges of one owner are granted in order");
    drop(held);
    assert_eq!(waits.await.amount(), 10);
}

#[tokio::test(start_paused = true)]
async fn large_charge_is_not_starved_by_small_ones() {
    let budget = Budget::new(&SPEC);
    let held = budget.try_charge(&identity("one"), Class::Ordinary, 40).unwrap();
    let large = {
        let budget = budget.clone();
        tokio::spawn(async move { budget.charge(&identity("large"), Class::Ordinary, 50).await })
    };
    tokio::time::sleep(Duration::from_millis(1)).await;
    // Small charges of other owners come and go, and would always fit.
    for n in 0..100 {
        let owner = identity(&n.to_string());
        let small = budget.charge(&owner, Class::Ordinary, 10);
        assert!(tokio::time::timeout(Duration::from_millis(1), small).await.is_err());
    }
    // Reserved charges do not wait behind it, not even those of the same owner.
    drop(budget.charge(&identity("large"), Class::Reserved, 10).now_or_never().unwrap());
    let _more = budget.try_charge(&identity("two"), Class::Ordinary, 40).unwrap();
    drop(budget.charge(&identity("officer"), Class::Reserved, 3).now_or_never().unwrap());
    drop(_more);
    drop(held);
    assert_eq!(tokio::time::timeout(Duration::from_secs(1), large).await.unwrap().unwrap().amount(), 50);
}

#[tokio::test]
async fn cancelled_waiting_charge_leaves_no_usage() {
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
    fn usage_is_the_sum_of_live_charges(steps in prop::collection::vec((0u8..4, 0u64..90, any::<bool>(), any::<bool>()), 0..200)) {
        let budget = Budget::new(&SPEC);
        let mut live: Vec<Charge> = Vec::new();
        for (owner, amount, reserved, release) in steps {
            if release && !live.is_empty() {
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
