//! What services wait for.

use model::spec as m;

use crate::types as w;

impl From<&m::Dependency> for w::Dependency {
    fn from(d: &m::Dependency) -> Self {
        Self {
            service: d.service.clone(),
            condition: match d.condition {
                m::DependencyCondition::Started => w::DependencyCondition::DependencyStarted,
                m::DependencyCondition::Healthy => w::DependencyCondition::DependencyHealthy,
                m::DependencyCondition::Completed => w::DependencyCondition::DependencyCompleted,
            }
            .into(),
            optional: d.optional,
        }
    }
}

impl From<w::Dependency> for m::Dependency {
    fn from(d: w::Dependency) -> Self {
        Self {
            condition: match d.condition() {
                w::DependencyCondition::DependencyStarted => m::DependencyCondition::Started,
                w::DependencyCondition::DependencyHealthy => m::DependencyCondition::Healthy,
                w::DependencyCondition::DependencyCompleted => m::DependencyCondition::Completed,
            },
            service: d.service,
            optional: d.optional,
        }
    }
}
