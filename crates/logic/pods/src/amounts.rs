//! What a pod as a whole asks for and may use, in plain numbers: thousandths of a CPU, units of everything else.

use crate::qos::{self, CPU};
use kedge_api::{Container, Pod, Quantity};
use std::collections::BTreeMap;

/// The resource of which every pod takes one.
pub(crate) const PODS: &str = "pods";

/// The number behind a quantity.
pub(crate) fn number(name: &str, quantity: &Quantity) -> i64 {
    if name == CPU {
        quantity.milli()
    } else {
        quantity.units()
    }
}

/// The quantity behind a number.
pub(crate) fn quantity(name: &str, number: i64) -> Quantity {
    let number = u64::try_from(number).unwrap_or(0);
    if name == CPU {
        Quantity::from_milli(number)
    } else {
        Quantity::from_units(number)
    }
}

/// What the pod asks for, with one of `pods`.
pub(crate) fn requests(pod: &Pod) -> BTreeMap<String, i64> {
    let mut sum = total(pod, |container| {
        let asked = &container.resources;
        let names = asked.requests.keys().chain(asked.limits.keys());
        names
            .filter_map(|name| Some((name.clone(), number(name, qos::request(asked, name)?))))
            .collect()
    });
    for (name, quantity) in &pod.spec.overhead {
        add(&mut sum, name, number(name, quantity));
    }
    sum.insert(PODS.to_owned(), 1);
    sum
}

/// What the pod may use, as far as its containers have limits.
pub(crate) fn limits(pod: &Pod) -> BTreeMap<String, i64> {
    let mut sum = total(pod, |container| {
        let limits = &container.resources.limits;
        limits
            .iter()
            .map(|(name, q)| (name.clone(), number(name, q)))
            .collect()
    });
    for (name, quantity) in &pod.spec.overhead {
        if sum.contains_key(name) {
            add(&mut sum, name, number(name, quantity));
        }
    }
    sum
}

/// Main containers and sidecars together, or the hungriest moment of the initialisation if that is more.
fn total(pod: &Pod, of: impl Fn(&Container) -> BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    let mut running: BTreeMap<String, i64> = BTreeMap::new();
    for container in &pod.spec.containers {
        for (name, amount) in of(container) {
            add(&mut running, &name, amount);
        }
    }
    let mut sidecars: BTreeMap<String, i64> = BTreeMap::new();
    let mut peak: BTreeMap<String, i64> = BTreeMap::new();
    for container in &pod.spec.init_containers {
        let own = of(container);
        let mut moment = sidecars.clone();
        for (name, amount) in own {
            add(&mut moment, &name, amount);
            if qos::is_sidecar(container) {
                add(&mut sidecars, &name, amount);
            }
        }
        raise(&mut peak, moment);
    }
    for (name, amount) in sidecars {
        add(&mut running, &name, amount);
    }
    raise(&mut running, peak);
    running
}

fn raise(sum: &mut BTreeMap<String, i64>, others: BTreeMap<String, i64>) {
    for (name, amount) in others {
        let known = sum.entry(name).or_default();
        *known = (*known).max(amount);
    }
}

pub(crate) fn add(sum: &mut BTreeMap<String, i64>, name: &str, amount: i64) {
    let known = sum.entry(name.to_owned()).or_default();
    *known = known.saturating_add(amount);
}
