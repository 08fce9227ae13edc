//! The rswarm command line: the clap tree, and exit codes.
#![forbid(unsafe_code)]

mod client;
mod command;
mod daemon;
mod demo;
mod fan;
mod inspect;
mod locate;
mod moment;
mod output;
mod prefix;
mod progress;
mod render;
mod template;
mod testapp;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use client::{Client, Fail};

/// Exit code of wrong usage, as Docker's client has it; 2 is that of a rollout that was rolled back.
const USAGE: u8 = 125;

/// A container orchestrator in one binary.
#[derive(Parser)]
#[command(
    name = "rswarm",
    version,
    about,
    after_help = "Exit codes: 0 done or converged, 1 failed, 2 rolled back, 3 paused, 4 timed out, 125 wrong usage, 130 interrupted, 74 the daemon cannot write its log; `exec` ends as its process ends."
)]
struct Cli {
    /// Socket of the daemon.
    #[arg(
        long,
        short = 'H',
        global = true,
        env = "RSWARM_SOCKET",
        default_value = "/run/rswarm/rswarm.sock"
    )]
    socket: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon: the agent of this node, and its manager.
    Daemon(daemon::Args),
    /// Make or leave a cluster.
    #[command(subcommand)]
    Swarm(command::swarm::Command),
    /// Show what this node is and has.
    Info(command::swarm::InfoArgs),
    /// Show the version.
    Version(command::swarm::InfoArgs),
    /// Manage services.
    #[command(subcommand)]
    Service(command::service::Command),
    /// Manage stacks: services that one file describes.
    #[command(subcommand)]
    Stack(command::stack::Command),
    /// Manage nodes.
    #[command(subcommand)]
    Node(command::node::Command),
    /// Manage networks.
    #[command(subcommand)]
    Network(command::network::Command),
    /// Manage volumes of this node.
    #[command(subcommand)]
    Volume(command::volume::Command),
    /// Manage secrets.
    #[command(subcommand)]
    Secret(command::file::Command),
    /// Manage configs.
    #[command(subcommand)]
    Config(command::file::Command),
    /// Manage images of this node.
    #[command(subcommand)]
    Image(command::image::Command),
    Inspect(command::inspect::Args),
    Run(command::run::RunArgs),
    /// List containers of this node.
    Ps(command::container::PsArgs),
    Exec(command::exec::ExecArgs),
    Logs(command::logs::LogsArgs),
    Cp(command::cp::Args),
    Stats(command::stats::Args),
    Top(command::top::Args),
    /// Show rswarm at work: deploy, scale, update under load, kill, clean up.
    Demo(demo::Args),
    /// The test application of the demo image.
    #[command(hide = true)]
    Testapp(testapp::Args),
}

fn main() -> ExitCode {
    runtime::run_hidden();
    runtime::tune_memory();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version come this way as well.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { USAGE } else { 0 });
        }
    };
    if let Command::Testapp(args) = cli.command {
        return ExitCode::from(testapp::run(&args));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Each log that is read holds one (READERS_MAX of the worker), and other work must still find some.
        .max_blocking_threads(2048)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => return render::fail(&Fail::new(format!("start: {e}"))),
    };
    let daemon = matches!(cli.command, Command::Daemon(_));
    let result = runtime.block_on(run(cli));
    if !daemon {
        // A thread may be reading standard input, and would be waited for until somebody types.
        runtime.shutdown_background();
    }
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => render::fail(&error),
    }
}

async fn run(cli: Cli) -> Result<u8, Fail> {
    let socket = PathBuf::from(cli.socket.strip_prefix("unix://").unwrap_or(&cli.socket));
    let client = Client::new(socket.clone());
    match cli.command {
        Command::Daemon(args) => daemon::run(args, socket).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Swarm(c) => command::swarm::run(&client, c).await,
        Command::Info(a) => command::swarm::info(&client, a).await,
        Command::Version(a) => command::swarm::version(&client, a).await,
        Command::Service(c) => command::service::run(&client, c).await,
        Command::Stack(c) => command::stack::run(&client, c).await,
        Command::Node(c) => command::node::run(&client, c).await,
        Command::Network(c) => command::network::run(&client, c).await,
        Command::Volume(c) => command::volume::run(&client, c).await,
        Command::Secret(c) => command::file::run(&client, c, true).await,
        Command::Config(c) => command::file::run(&client, c, false).await,
        Command::Image(c) => command::image::run(&client, c).await,
        Command::Inspect(a) => command::inspect::run(&client, a).await,
        Command::Run(a) => command::run::run(&client, a).await,
        Command::Ps(a) => command::container::ps(&client, a).await,
        Command::Exec(a) => command::exec::exec(&client, a).await,
        Command::Logs(a) => command::logs::logs(&client, a).await,
        Command::Cp(a) => command::cp::run(&client, a).await,
        Command::Stats(a) => command::stats::run(&client, a).await,
        Command::Top(a) => command::top::run(&client, a).await,
        Command::Testapp(_) => Ok(0),
    }
}
