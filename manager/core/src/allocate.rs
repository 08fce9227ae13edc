//! New → Pending: addresses in the networks of a task, its host ports, and the virtual addresses of services.

mod address;
mod endpoint;
mod port;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use model::object::{Network, Task};
use model::spec::{EndpointMode, Family, PortSpec, PublishMode, ServiceSpec};
use model::task_state::TaskState;
use model::{NetworkId, TaskId, Timestamp};

pub(crate) use address::{free_subnet, free_vni, held_within, overlaps};
pub(crate) use endpoint::{EndpointError, endpoint};

use crate::state::{Scratch, State};

/// Gives tasks that are New their addresses; those for which there is none say so and stay New.
pub(crate) fn allocate(
    scratch: &mut Scratch,
    open: &mut [Arc<Task>],
    now: Timestamp,
    report: &mut BTreeMap<TaskId, String>,
) {
    for task in open.iter_mut().filter(|t| t.status.state == TaskState::New) {
        let host_ports = host_ports(scratch, task);
        match addresses(scratch, task) {
            Ok(addresses) => {
                *task = scratch.change_task(task, |t| {
                    t.addresses = addresses;
                    t.host_ports = host_ports;
                    t.status.state = TaskState::Pending;
                    t.status.at = now;
                    t.status.message = "pending task scheduling".into();
                    t.status.error = String::new();
                });
            }
            Err(problem) => {
                report.insert(task.id, problem.clone());
                if task.status.error != problem {
                    *task = scratch.change_task(task, |t| t.status.error = problem);
                }
            }
        }
    }
}

/// The networks of a task: those of its spec, or the one of published ports, so that it has a way out.
fn networks_of(state: &State, task: &Task) -> Result<Vec<Arc<Network>>, String> {
    let wanted: Vec<NetworkId> = if task.spec.networks.is_empty() {
        state.ingress().map(|n| n.id).into_iter().collect()
    } else {
        task.spec.networks.iter().map(|n| n.network).collect()
    };
    wanted
        .into_iter()
        .map(|id| {
            state
                .network(id)
                .cloned()
                .ok_or_else(|| format!("network {id} does not exist any more"))
        })
        .collect()
}

fn addresses(state: &State, task: &Task) -> Result<Vec<(NetworkId, IpAddr)>, String> {
    let mut given = Vec::new();
    for network in networks_of(state, task)? {
        for family in network.spec.families() {
            let address = address::free_address(state, &network, *family, task.id.0).ok_or_else(|| {
                format!(
                    "network {} has {} left: remove tasks, or add a subnet (rswarm network update --subnet-add)",
                    network.spec.name,
                    no_free_address(*family)
                )
            })?;
            given.push((network.id, address));
        }
    }
    Ok(given)
}

/// What a network has when it is full.
const fn no_free_address(family: Family) -> &'static str {
    match family {
        Family::V4 => "no free address",
        Family::V6 => "no free IPv6 address",
    }
}

fn host_ports(state: &State, task: &Task) -> Vec<PortSpec> {
    let Some(service) = state.service(task.service) else {
        return Vec::new();
    };
    service
        .endpoint
        .ports
        .iter()
        .filter(|p| p.mode == PublishMode::Host)
        .cloned()
        .collect()
}

/// Why a service has no virtual address in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VipError {
    /// No address of the family is free in the network.
    Full { network: String, family: Family },
    /// The one that was asked for is of IPv6, which the network has not.
    NoIpv6 { network: String, address: IpAddr },
    /// Somebody else has the one that was asked for.
    Taken {
        network: String,
        address: IpAddr,
        holder: String,
    },
    /// The one that was asked for is none that can be given.
    Outside { network: String, address: IpAddr },
}

/// The virtual addresses of a service: those it has are kept, missing ones are added, others dropped.
///
/// # Errors
/// [`VipError`] with the network that has none for it.
pub(crate) fn vips(
    state: &State,
    spec: &ServiceSpec,
    have: &[(NetworkId, IpAddr)],
    seed: u128,
) -> Result<Vec<(NetworkId, IpAddr)>, VipError> {
    if spec.endpoint.mode == EndpointMode::DnsRr {
        return Ok(Vec::new());
    }
    let mut vips = Vec::new();
    for attachment in &spec.task.networks {
        for family in [Family::V4, Family::V6] {
            let asked = attachment.asked(family);
            let fits = |a: IpAddr| Family::of(a) == family && asked.is_none_or(|asked| asked == a);
            let kept = have.iter().find(|(n, a)| *n == attachment.network && fits(*a));
            let new = || match state.network(attachment.network) {
                Some(network) => vip(state, network, family, asked, seed),
                None => Ok(None),
            };
            let address = kept.map_or_else(new, |(_, address)| Ok(Some(*address)))?;
            vips.extend(address.map(|address| (attachment.network, address)));
        }
    }
    Ok(vips)
}

/// A new virtual address of a family in a network, if that has the family: the one that was asked for, or any.
fn vip(
    state: &State,
    network: &Network,
    family: Family,
    asked: Option<IpAddr>,
    seed: u128,
) -> Result<Option<IpAddr>, VipError> {
    let name = || network.spec.name.clone();
    let has = network.spec.families().contains(&family);
    match asked {
        None if !has => Ok(None),
        None => match address::free_address(state, network, family, seed) {
            Some(address) => Ok(Some(address)),
            None => Err(VipError::Full {
                network: name(),
                family,
            }),
        },
        Some(address) if !has => Err(VipError::NoIpv6 {
            network: name(),
            address,
        }),
        Some(address) if !address::can_be_given(network, address) => Err(VipError::Outside {
            network: name(),
            address,
        }),
        Some(address) => match state.address_holder(network.id, address) {
            Some(holder) => Err(VipError::Taken {
                network: name(),
                address,
                holder,
            }),
            None => Ok(Some(address)),
        },
    }
}
