//! A stack: services, networks, secrets and configs that are deployed as one.

use super::{ConfigSpec, NetworkSpec, SecretSpec, ServiceSpec};

/// Label that names the stack of an object; Docker's, so that Docker's tools find it.
pub const STACK_LABEL: &str = "com.docker.stack.namespace";

/// A stack as the user wants it. Every name has its `<stack>_` prefix already and every object its [`STACK_LABEL`];
/// services name networks, secrets and configs, so their ids are `NIL`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StackSpec {
    /// Name of the stack.
    pub namespace: String,
    /// Services.
    pub services: Vec<ServiceSpec>,
    /// Networks to make where they are missing.
    pub networks: Vec<NetworkSpec>,
    /// Secrets to make.
    pub secrets: Vec<SecretSpec>,
    /// Configs to make.
    pub configs: Vec<ConfigSpec>,
    /// Networks that must exist already.
    pub external_networks: Vec<String>,
    /// Secrets that must exist already.
    pub external_secrets: Vec<String>,
    /// Configs that must exist already.
    pub external_configs: Vec<String>,
}
