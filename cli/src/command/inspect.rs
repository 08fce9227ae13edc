//! `inspect`: any object by its name or id.

use model::object::Object;
use proto::types::Kind;

use crate::client::{Client, Fail};
use crate::command::network;
use crate::inspect;
use crate::render::{self, InspectArgs};

/// Show objects of the cluster, whatever they are.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Names or ids.
    #[arg(required = true)]
    names: Vec<String>,
    /// Look among these alone. Otherwise the first that has it: services, tasks, nodes, networks, secrets, configs.
    #[arg(long = "type")]
    kind: Option<Only>,
    #[command(flatten)]
    how: InspectArgs,
}

/// Kinds of objects.
#[derive(clap::ValueEnum, Clone, Copy)]
enum Only {
    Service,
    Task,
    Node,
    Network,
    Secret,
    Config,
}

const ALL: [Only; 6] = [
    Only::Service,
    Only::Task,
    Only::Node,
    Only::Network,
    Only::Secret,
    Only::Config,
];

impl Only {
    const fn kind(self) -> Kind {
        match self {
            Self::Service => Kind::Service,
            Self::Task => Kind::Task,
            Self::Node => Kind::Node,
            Self::Network => Kind::Network,
            Self::Secret => Kind::Secret,
            Self::Config => Kind::Config,
        }
    }
}

pub(crate) async fn run(client: &Client, args: Args) -> Result<u8, Fail> {
    let kinds = args.kind.map_or(ALL.to_vec(), |kind| vec![kind]);
    let mut values = Vec::new();
    for name in &args.names {
        values.push(match find(client, &kinds, name).await? {
            Object::Service(s) => inspect::service(&s, args.how.pretty),
            Object::Task(t) => inspect::task(&t),
            Object::Node(n) => inspect::node(&n),
            Object::Network(n) => network::whole(client, &n).await?,
            Object::Secret(s) => inspect::secret(&s),
            Object::Config(c) => inspect::config(&c),
            Object::Cluster(_) => continue,
        });
    }
    render::inspect(&values, &args.how)?;
    Ok(0)
}

/// The first object of a name; what is there twice by the start of its id is an error.
async fn find(client: &Client, kinds: &[Only], name: &str) -> Result<Object, Fail> {
    for kind in kinds {
        match client.get(kind.kind(), name).await {
            Err(fail) if fail.code == Some(tonic::Code::NotFound) => {}
            found => return found,
        }
    }
    let what = match kinds {
        [one] => one.kind().as_str_name().to_ascii_lowercase(),
        _ => "service, task, node, network, secret or config".into(),
    };
    Err(Fail::new(format!(
        "no {what} is called {name}, nor has an id that begins so"
    )))
}
