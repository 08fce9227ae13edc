//! Secrets and configs: small files that the cluster keeps.

use super::Labels;

/// Most bytes of a secret.
pub const SECRET_MAX: usize = 500 * 1024 - 1;
/// Most bytes of a config.
pub const CONFIG_MAX: usize = 1000 * 1024 - 1;

/// A secret as the user gave it. Its bytes are left out of `Debug`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SecretSpec {
    /// Unique in the cluster.
    pub name: String,
    /// Labels; the only part that may change.
    pub labels: Labels,
    /// 1 to [`SECRET_MAX`] bytes.
    pub data: Vec<u8>,
}

impl std::fmt::Debug for SecretSpec {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("SecretSpec")
            .field("name", &self.name)
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

/// A config as the user gave it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigSpec {
    /// Unique in the cluster.
    pub name: String,
    /// Labels; the only part that may change.
    pub labels: Labels,
    /// 0 to [`CONFIG_MAX`] bytes.
    pub data: Vec<u8>,
}
