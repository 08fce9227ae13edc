//! Names of images in a request → the images they mean now, looked up before the request is decided.

use manager_core::admit::{Pinning, ResolveImage};
use manager_core::{Admitted, Refusal};
use model::spec::ServiceSpec;
use proto::control as wire;
use tonic::Status;

use super::{Api, Spec};

impl Api {
    /// What the nodes said of the image of a service; none where it is to be left as it is.
    pub(super) fn pinning_of(&self, spec: &Spec, leave: bool) -> Result<Option<Pinning>, Status> {
        match spec {
            Spec::Service(spec) if !leave => self.pinning([&**spec], ResolveImage::Always).map(Some),
            Spec::Service(_) | Spec::Network(_) | Spec::Secret(_) | Spec::Config(_) | Spec::Node(_) => {
                Ok(None)
            }
        }
    }

    /// What the nodes said of the images of these services.
    pub(super) fn pinning<'a>(
        &self,
        services: impl IntoIterator<Item = &'a ServiceSpec>,
        when: ResolveImage,
    ) -> Result<Pinning, Status> {
        let cluster = self.cluster()?;
        let images = services.into_iter().map(|s| s.task.container.image.as_str());
        let known = images
            .filter(|image| Pinning::is_open(image))
            .filter_map(|image| Some((image.to_owned(), cluster.dispatcher.resolve_image(image)?.id)));
        Ok(Pinning {
            known: known.collect(),
            when,
        })
    }
}

pub(super) fn when(wire: wire::ResolveImage) -> ResolveImage {
    match wire {
        wire::ResolveImage::Always => ResolveImage::Always,
        wire::ResolveImage::Changed => ResolveImage::Changed,
        wire::ResolveImage::Never => ResolveImage::Never,
    }
}

/// A decision, and what there is to know about its images.
pub(super) fn warned(
    decision: Result<Admitted, Refusal>,
    warnings: impl IntoIterator<Item = String>,
) -> Result<Admitted, Refusal> {
    decision.map(|mut admitted| {
        admitted.warnings.extend(warnings);
        admitted
    })
}
