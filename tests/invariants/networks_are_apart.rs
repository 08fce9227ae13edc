//! No network number is used twice and no two subnets overlap (I31).

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    let networks: Vec<_> = seen.after.networks().collect();
    for (at, a) in networks.iter().enumerate() {
        for b in &networks[at + 1..] {
            let overlap = a.subnets.iter().any(|x| {
                b.subnets
                    .iter()
                    .any(|y| x.contains(&y.network()) || y.contains(&x.network()))
            });
            if a.vni == b.vni || overlap {
                return Err(format!(
                    "networks {} and {} share a number or a subnet",
                    a.spec.name, b.spec.name
                ));
            }
        }
    }
    Ok(())
}
