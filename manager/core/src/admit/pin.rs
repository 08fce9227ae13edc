//! The name of an image → that name and the one image it means now, so that every task runs the same (trap D8).

use std::collections::BTreeMap;

use model::object::Key;
use model::spec::{ImageId, ImageRef, ServiceSpec};

use crate::state::{Kind, State};

/// When names are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResolveImage {
    /// Whenever a service is written.
    Always,
    /// When its name of an image is not the one the service has.
    Changed,
    /// Not at all; a service whose name stays keeps its image.
    Never,
}

/// What names of images mean, as the leader heard from the nodes when a request came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinning {
    /// Reference as the request has it → image. What is not here nobody has.
    pub known: BTreeMap<String, ImageId>,
    /// When it counts.
    pub when: ResolveImage,
}

impl Pinning {
    /// Whether a reference leaves open which image it means.
    pub fn is_open(reference: &str) -> bool {
        ImageRef::parse(reference).digest.is_none() && reference.parse::<ImageId>().is_err()
    }

    /// Writes the image into the spec; answers what the user should know.
    ///
    /// Where nobody knows the name, or nobody is to be asked, a service that has that name already keeps its image: a
    /// leader that has just begun and has not heard of the nodes yet must not start a rollout.
    pub fn apply(&self, state: &State, spec: &mut ServiceSpec) -> Option<String> {
        let image = &mut spec.task.container.image;
        if !Self::is_open(image) {
            return None;
        }
        let parts = ImageRef::parse(image);
        let existing = match state.named(Kind::Service, &spec.name) {
            Some(Key::Service(id)) => state.service(id),
            Some(
                Key::Cluster
                | Key::Node(_)
                | Key::Task(_)
                | Key::Network(_)
                | Key::Secret(_)
                | Key::Config(_),
            )
            | None => None,
        };
        let kept = (existing.map(|s| s.spec.task.container.image.as_str()))
            .filter(|old| ImageRef::parse(old).key() == parts.key())
            .map(str::to_owned);
        let (pinned, warning) = match (self.when, kept, self.known.get(image.as_str())) {
            (ResolveImage::Changed | ResolveImage::Never, Some(kept), _) => (Some(kept), None),
            (ResolveImage::Always | ResolveImage::Changed, _, Some(id)) => (Some(parts.pinned(*id)), None),
            (ResolveImage::Always, Some(kept), None) if !Self::is_open(&kept) => {
                let warning = format!(
                    "service {}: image {image} could not be found on any node now; it stays {kept}",
                    spec.name
                );
                (Some(kept), Some(warning))
            }
            (ResolveImage::Never, None, _) => (None, None),
            (ResolveImage::Always, _, None) | (ResolveImage::Changed, None, None) => {
                let warning = format!(
                    "image {image} could not be found on any node to record its digest. Each node will look {image} up \
                     by itself, possibly leading to different nodes running different versions of the image"
                );
                (None, Some(warning))
            }
        };
        if let Some(pinned) = pinned {
            *image = pinned;
        }
        warning
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::object::{Endpoint, Meta, Object, Service};
    use model::{ServiceId, Timestamp};

    use super::*;
    use crate::txn::{Action, Entry, Txn};

    fn spec(image: &str) -> ServiceSpec {
        let mut spec = ServiceSpec {
            name: "web".into(),
            ..ServiceSpec::default()
        };
        spec.task.container.image = image.into();
        spec
    }

    fn state(image: Option<&str>) -> State {
        let mut state = State::new();
        let Some(image) = image else { return state };
        let service = Service {
            id: ServiceId(1),
            meta: Meta::default(),
            spec: Arc::new(spec(image)),
            spec_version: 1,
            previous_spec: None,
            update: None,
            job: None,
            endpoint: Endpoint::default(),
        };
        let entry = Entry {
            index: 1,
            now: Timestamp(1),
            txn: Txn {
                expect: Vec::new(),
                actions: vec![Action::Put(Object::Service(Arc::new(service)))],
            },
        };
        state.apply(&entry).expect("it applies");
        state
    }

    #[test]
    fn a_name_is_pinned_once_and_follows_its_tag_only_when_asked() {
        use ResolveImage::{Always, Changed, Never};
        let (a, b) = (ImageId([1; 32]), ImageId([2; 32]));
        let (on_a, on_b) = (format!("web:1@{a}"), format!("web:1@{b}"));
        let lone = b.to_string();
        let latest = format!("web:latest@{b}");
        // What the row shows; the service's image now; the request's; who is known; when; what is written; a warning?
        type Row<'a> = (
            &'a str,
            Option<&'a str>,
            &'a str,
            Option<ImageId>,
            ResolveImage,
            &'a str,
            bool,
        );
        let rows: &[Row<'_>] = &[
            ("a new service", None, "web:1", Some(a), Always, &on_a, false),
            (
                "also when only changes count",
                None,
                "web:1",
                Some(a),
                Changed,
                &on_a,
                false,
            ),
            (
                "not when nobody is to be asked",
                None,
                "web:1",
                Some(a),
                Never,
                "web:1",
                false,
            ),
            ("no tag is latest", None, "web", Some(b), Always, &latest, false),
            ("nobody has it", None, "web:1", None, Always, "web:1", true),
            ("a digest stays", None, &on_a, Some(b), Always, &on_a, false),
            ("an id stays", None, &lone, None, Always, &lone, false),
            (
                "the same again",
                Some(&on_a),
                "web:1",
                Some(a),
                Always,
                &on_a,
                false,
            ),
            (
                "the tag moved",
                Some(&on_a),
                "web:1",
                Some(b),
                Always,
                &on_b,
                false,
            ),
            (
                "the tag moved, but the name is the same",
                Some(&on_a),
                "web:1",
                Some(b),
                Changed,
                &on_a,
                false,
            ),
            (
                "the tag moved, and nobody asks",
                Some(&on_a),
                "web:1",
                Some(b),
                Never,
                &on_a,
                false,
            ),
            (
                "another name",
                Some(&on_a),
                "web",
                Some(b),
                Changed,
                &latest,
                false,
            ),
            (
                "another name, and nobody asks",
                Some(&on_a),
                "web",
                Some(b),
                Never,
                "web",
                false,
            ),
            (
                "a leader that knows nothing yet",
                Some(&on_a),
                "web:1",
                None,
                Always,
                &on_a,
                true,
            ),
            (
                "the same, and it does not matter",
                Some(&on_a),
                "web:1",
                None,
                Changed,
                &on_a,
                false,
            ),
            (
                "never found, not then and not now",
                Some("web:1"),
                "web:1",
                None,
                Always,
                "web:1",
                true,
            ),
            (
                "not found then, found now",
                Some("web:1"),
                "web:1",
                Some(a),
                Always,
                &on_a,
                false,
            ),
            (
                "as Docker writes it",
                Some(&on_a),
                "docker.io/web:1",
                None,
                Changed,
                &on_a,
                false,
            ),
        ];
        for (name, now, image, known, when, want, warns) in rows {
            let pinning = Pinning {
                known: known.iter().map(|id| ((*image).to_owned(), *id)).collect(),
                when: *when,
            };
            let mut spec = spec(image);
            let state = state(*now);
            let warning = pinning.apply(&state, &mut spec);
            assert_eq!(spec.task.container.image, *want, "{name}");
            assert_eq!(warning.is_some(), *warns, "{name}: {warning:?}");
            let mut again = spec.clone();
            pinning.apply(&state, &mut again);
            assert!(again == spec || Pinning::is_open(want), "{name}: again");
        }
    }
}
