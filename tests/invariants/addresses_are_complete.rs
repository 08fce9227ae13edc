//! Who has an address in a network has one of each family that the network has, IPv4 first (I28).

use std::net::IpAddr;

use model::NetworkId;
use model::spec::Family;

use super::Seen;

pub(super) fn check(seen: &Seen<'_>) -> Result<(), String> {
    let complete = |who: &str, addresses: &[(NetworkId, IpAddr)]| {
        for of_one in addresses.chunk_by(|(a, _), (b, _)| a == b) {
            let Some(network) = seen.after.network(of_one[0].0) else {
                continue;
            };
            let families: Vec<Family> = of_one.iter().map(|(_, a)| Family::of(*a)).collect();
            if families != network.spec.families() {
                return Err(format!("{who} has in network {} {of_one:?}", network.spec.name));
            }
            if let Some((_, outside)) = of_one
                .iter()
                .find(|(_, a)| !network.subnets.iter().any(|s| s.contains(a)))
            {
                return Err(format!(
                    "{who} has {outside}, which is in no subnet of its network"
                ));
            }
        }
        Ok(())
    };
    for service in seen.after.services() {
        complete(&format!("service {}", service.spec.name), &service.endpoint.vips)?;
    }
    for task in seen.after.tasks().filter(|t| !t.status.state.is_terminal()) {
        complete(&task.container_name(), &task.addresses)?;
    }
    Ok(())
}
