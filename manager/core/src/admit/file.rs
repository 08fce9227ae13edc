//! Secrets and configs.

use std::sync::Arc;

use model::ids::IdSource;
use model::object::{Config, Key, Meta, Object, Secret};
use model::spec::{CONFIG_MAX, ConfigSpec, Labels, SECRET_MAX, SecretSpec, check_name};
use model::{ConfigId, SecretId, Timestamp};

use super::{Admitted, Refusal, RefusalKind, check_version, user_of, validate};
use crate::state::{Kind, Scratch, State};

/// Makes a secret.
///
/// # Errors
/// [`Refusal`] when its name is taken or its size is out of bounds.
pub fn create_secret(
    state: &State,
    spec: SecretSpec,
    now: Timestamp,
    ids: &mut dyn IdSource,
) -> Result<Admitted, Refusal> {
    let mut scratch = Scratch::new(state);
    let id = add_secret(&mut scratch, spec, now, ids)?;
    Ok(Admitted::new(scratch, vec![Key::Secret(id)]))
}

pub(super) fn add_secret(
    scratch: &mut Scratch,
    spec: SecretSpec,
    now: Timestamp,
    ids: &mut dyn IdSource,
) -> Result<SecretId, Refusal> {
    check_name("secret", &spec.name)?;
    validate::labels("secret", &spec.name, &spec.labels)?;
    if spec.data.is_empty() || spec.data.len() > SECRET_MAX {
        return Err(size("secret", &spec.name, spec.data.len(), SECRET_MAX));
    }
    if scratch.named(Kind::Secret, &spec.name).is_some() {
        return Err(Refusal::taken(Kind::Secret, &spec.name));
    }
    let id = SecretId::new(ids);
    let meta = Meta {
        version: 0,
        created_at: now,
        updated_at: now,
    };
    scratch.put(Object::Secret(Arc::new(Secret {
        id,
        meta,
        spec: Arc::new(spec),
    })));
    Ok(id)
}

/// Makes a config.
///
/// # Errors
/// [`Refusal`] when its name is taken or its size is out of bounds.
pub fn create_config(
    state: &State,
    spec: ConfigSpec,
    now: Timestamp,
    ids: &mut dyn IdSource,
) -> Result<Admitted, Refusal> {
    let mut scratch = Scratch::new(state);
    let id = add_config(&mut scratch, spec, now, ids)?;
    Ok(Admitted::new(scratch, vec![Key::Config(id)]))
}

pub(super) fn add_config(
    scratch: &mut Scratch,
    spec: ConfigSpec,
    now: Timestamp,
    ids: &mut dyn IdSource,
) -> Result<ConfigId, Refusal> {
    check_name("config", &spec.name)?;
    validate::labels("config", &spec.name, &spec.labels)?;
    if spec.data.len() > CONFIG_MAX {
        return Err(size("config", &spec.name, spec.data.len(), CONFIG_MAX));
    }
    if scratch.named(Kind::Config, &spec.name).is_some() {
        return Err(Refusal::taken(Kind::Config, &spec.name));
    }
    let id = ConfigId::new(ids);
    let meta = Meta {
        version: 0,
        created_at: now,
        updated_at: now,
    };
    scratch.put(Object::Config(Arc::new(Config {
        id,
        meta,
        spec: Arc::new(spec),
    })));
    Ok(id)
}

fn size(kind: &str, name: &str, found: usize, most: usize) -> Refusal {
    Refusal::invalid(format!(
        "{kind} {name} has {found} bytes: it must have at least 1 and at most {most}"
    ))
}

/// Changes the labels of a secret.
///
/// # Errors
/// [`Refusal`] when it is missing, changed meanwhile, or anything but labels differs.
pub fn update_secret_labels(
    state: &State,
    reference: &str,
    expected: Option<u64>,
    spec: &SecretSpec,
) -> Result<Admitted, Refusal> {
    let key = state.find(Kind::Secret, reference)?;
    let mut scratch = Scratch::new(state);
    let Some(Object::Secret(secret)) = state.object(key) else {
        return Err(gone("secret", reference));
    };
    check_version(Kind::Secret, &secret.spec.name, expected, secret.meta.version)?;
    // Clients cannot read the data back, so they send none.
    if spec.name != secret.spec.name || (!spec.data.is_empty() && spec.data != secret.spec.data) {
        return Err(labels_only("secret", &secret.spec.name));
    }
    let new = Secret {
        spec: Arc::new(relabel_secret(&secret.spec, &spec.labels)),
        ..(*secret).clone()
    };
    scratch.put(Object::Secret(Arc::new(new)));
    Ok(Admitted::new(scratch, vec![key]))
}

fn relabel_secret(spec: &SecretSpec, labels: &Labels) -> SecretSpec {
    SecretSpec {
        labels: labels.clone(),
        ..spec.clone()
    }
}

/// Changes the labels of a config.
///
/// # Errors
/// [`Refusal`] when it is missing, changed meanwhile, or anything but labels differs.
pub fn update_config_labels(
    state: &State,
    reference: &str,
    expected: Option<u64>,
    spec: &ConfigSpec,
) -> Result<Admitted, Refusal> {
    let key = state.find(Kind::Config, reference)?;
    let mut scratch = Scratch::new(state);
    let Some(Object::Config(config)) = state.object(key) else {
        return Err(gone("config", reference));
    };
    check_version(Kind::Config, &config.spec.name, expected, config.meta.version)?;
    if spec.name != config.spec.name || spec.data != config.spec.data {
        return Err(labels_only("config", &config.spec.name));
    }
    let new = Config {
        spec: Arc::new(ConfigSpec {
            labels: spec.labels.clone(),
            ..(*config.spec).clone()
        }),
        ..(*config).clone()
    };
    scratch.put(Object::Config(Arc::new(new)));
    Ok(Admitted::new(scratch, vec![key]))
}

pub(super) fn labels_only(kind: &str, name: &str) -> Refusal {
    Refusal::invalid(format!(
        "only the labels of {kind} {name} may change: make a new {kind} under another name and let the services use that"
    ))
}

pub(super) fn gone(kind: &str, name: &str) -> Refusal {
    Refusal::new(RefusalKind::NotFound, format!("{kind} {name} not found"))
}

/// Removes secrets, all or none.
///
/// # Errors
/// [`Refusal`] when one is missing or used by a service.
pub fn remove_secrets(state: &State, references: &[String]) -> Result<Admitted, Refusal> {
    let mut scratch = Scratch::new(state);
    let mut keys = Vec::new();
    for reference in references {
        let key = scratch.find(Kind::Secret, reference)?;
        let Key::Secret(id) = key else { continue };
        if let Some(user) = user_of(&scratch, |t| t.container.secrets.iter().any(|r| r.id == id)) {
            return Err(in_use("secret", reference, &user));
        }
        scratch.delete(key);
        keys.push(key);
    }
    Ok(Admitted::new(scratch, keys))
}

/// Removes configs, all or none.
///
/// # Errors
/// [`Refusal`] when one is missing or used by a service.
pub fn remove_configs(state: &State, references: &[String]) -> Result<Admitted, Refusal> {
    let mut scratch = Scratch::new(state);
    let mut keys = Vec::new();
    for reference in references {
        let key = scratch.find(Kind::Config, reference)?;
        let Key::Config(id) = key else { continue };
        if let Some(user) = user_of(&scratch, |t| t.container.configs.iter().any(|r| r.id == id)) {
            return Err(in_use("config", reference, &user));
        }
        scratch.delete(key);
        keys.push(key);
    }
    Ok(Admitted::new(scratch, keys))
}

pub(super) fn in_use(kind: &str, name: &str, user: &str) -> Refusal {
    let message = format!(
        "{kind} {name} is in use by {user}: remove it first, or take the {kind} from it and wait for the rollout"
    );
    Refusal::new(RefusalKind::InUse, message)
}
