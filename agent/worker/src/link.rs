//! The session under way, for the parts of the agent that ask the manager something or tell it.

use model::NodeId;
use proto::dispatch as w;
use proto::dispatch::dispatcher_client::DispatcherClient;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;

use crate::fetch::{FindError, Finder, Found};
use crate::vouch::Voucher;
use std::time::Duration;

/// Wait for a session, and for an answer of the manager: it may be electing a leader.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// The same while another node waits for what it asked.
const VOUCH_LIMIT: Duration = Duration::from_secs(5);
/// Wait before a manager that could not answer is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// A session with a manager.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) client: DispatcherClient<Channel>,
    pub(crate) session: String,
}

/// Where the session under way is found.
pub(crate) struct Links {
    current: watch::Sender<Option<Link>>,
}

/// The session is over when this is dropped.
pub(crate) struct Held<'a>(&'a Links);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.current.send_replace(None);
    }
}

impl Links {
    pub(crate) fn new() -> Self {
        Self {
            current: watch::Sender::new(None),
        }
    }

    /// Tells of a session for as long as what is returned lives.
    pub(crate) fn hold(&self, link: Link) -> Held<'_> {
        self.current.send_replace(Some(link));
        Held(self)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Link>> {
        self.current.subscribe()
    }

    /// The session under way, or the next one.
    async fn link(&self) -> Result<Link, Status> {
        let mut links = self.subscribe();
        let link = links.wait_for(Option::is_some).await;
        let link = link.ok().and_then(|l| l.clone());
        link.ok_or_else(|| Status::unavailable("the agent stops"))
    }

    async fn ask(&self, reference: &str) -> Result<Found, Status> {
        let mut link = self.link().await?;
        let request = w::FindImageRequest {
            session: link.session,
            reference: reference.into(),
        };
        let reply = link.client.find_image(request).await?.into_inner();
        let source = |s: w::ImageSource| Some((s.node_id.parse().ok()?, s.address));
        Ok(Found {
            id: reply.id,
            sources: reply.sources.into_iter().filter_map(source).collect(),
        })
    }
}

#[tonic::async_trait]
impl Voucher for Links {
    async fn is_member(&self, node: NodeId) -> Result<bool, Status> {
        let asking = async {
            let mut link = self.link().await?;
            let request = w::VouchRequest {
                session: link.session,
                node_id: node.to_string(),
            };
            Ok::<_, Status>(link.client.vouch(request).await?.into_inner().member)
        };
        // Whatever a manager had against the question, who asks us may come again.
        let unknown =
            |why: &str| Status::unavailable(format!("no manager says now who is part of the cluster: {why}"));
        let answer = tokio::time::timeout(VOUCH_LIMIT, asking).await;
        answer
            .map_err(|_| unknown("none answers"))?
            .map_err(|status| unknown(status.message()))
    }
}

#[tonic::async_trait]
impl Finder for Links {
    async fn find(&self, reference: &str) -> Result<Found, FindError> {
        let mut last = "there is no session with a manager".to_owned();
        let asking = async {
            loop {
                match self.ask(reference).await {
                    Ok(found) => return Ok(found),
                    // A manager of an older version knows of no images at all.
                    Err(s) if matches!(s.code(), tonic::Code::NotFound | tonic::Code::Unimplemented) => {
                        return Err(FindError::Nobody);
                    }
                    Err(s) => s.message().clone_into(&mut last),
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        let answer = tokio::time::timeout(ANSWER_LIMIT, asking).await;
        answer.unwrap_or(Err(FindError::Manager(last)))
    }
}
