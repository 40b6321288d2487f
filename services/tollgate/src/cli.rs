//! The verbs, and what each of them needs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use runtime::Variables;

use crate::connect::System;
use crate::failure::Result;
use crate::output::Output;
use crate::{
    anomaly, audit, audit_log, config_cmd, dev, invitation, journal_cmd, key, letters, member,
    migrate, org, pepper, samples_cmd, seed, serve, service, usage, user, wallet_cmd, why,
};

const EXIT_USAGE: u8 = 64;

const EXAMPLES: &str = "Examples:
  tollgate dev                                   everything on this machine, with a demo
  tollgate serve --target=all                    all services in one process
  tollgate serve --target=gateway                one service, the others elsewhere
  tollgate org create --name Acme --owner ada@acme.example
  tollgate wallet show --org org_…
  tollgate why req_…                             the whole story of a call
  tollgate audit --json                          recompute everything; exit 1 on a difference

Commands find the system by --data DIR or TOLLGATE_DATA (the folder of a running `tollgate dev`,
by default ./.tollgate), else by TOLLGATE_KEYS_GRPC_URL and its like with TOLLGATE_OPERATOR_TOKEN.
Exit codes: 0 done, 1 failed, 64 wrong request or configuration.";

/// Sell HTTP APIs by the call.
#[derive(Parser)]
#[command(
    name = "tollgate",
    version = version(),
    after_help = EXAMPLES,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// Print JSON for scripts
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Folder of `tollgate dev`
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything on this machine: servers, services, samples, demo
    Dev(dev::Dev),
    /// Run services in this process
    Serve(serve::Serve),
    /// Bring the database to the state this binary needs
    Migrate,
    /// Show the effective configuration; exit 64 if it is broken
    Config(config_cmd::Config),
    /// Create demo services or a demo organisation, if they are missing
    #[command(subcommand)]
    Seed(seed::Seed),
    /// Make and replace the secret that is hashed with every key
    #[command(subcommand)]
    Pepper(pepper::Pepper),
    /// Organisations
    #[command(subcommand)]
    Org(org::Org),
    /// Members of organisations
    #[command(subcommand)]
    Member(member::Member),
    /// Invitations to organisations
    #[command(subcommand)]
    Invitation(invitation::Invitation),
    /// Accounts of people
    #[command(subcommand)]
    User(user::User),
    /// API keys
    #[command(subcommand)]
    Key(key::Key),
    /// Credits
    #[command(subcommand)]
    Wallet(wallet_cmd::Wallet),
    /// Services for sale
    #[command(subcommand)]
    Service(service::Service),
    /// Prices and scopes of parts of a service
    #[command(subcommand)]
    Route(service::Route),
    /// Calls and daily totals
    #[command(subcommand)]
    Usage(usage::Usage),
    /// Unusual behaviour of keys
    #[command(subcommand)]
    Anomaly(anomaly::Anomaly),
    /// Who changed what
    #[command(subcommand)]
    AuditLog(audit_log::AuditLog),
    /// Recompute every wallet, row and statistic independently; exit 1 on any difference
    Audit(audit::Audit),
    /// Tell the whole story of a call
    Why(why::Why),
    /// Look at the journals of a gateway, or bring those of a dead one to their end
    #[command(subcommand)]
    Journal(journal_cmd::Journal),
    /// Look at what consumers have put aside, apply it again, or discard it
    Letters(letters::Letters),
    /// Print completions for a shell
    #[command(after_help = "Example:\n  tollgate completions bash > \
        ~/.local/share/bash-completion/completions/tollgate")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Run the sample upstreams
    #[command(hide = true)]
    Samples(samples_cmd::Samples),
}

/// Version, commit and date of the build.
fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let commit = option_env!("TOLLGATE_COMMIT").unwrap_or("unknown commit");
        let date = option_env!("TOLLGATE_BUILD_DATE").unwrap_or("local build");
        format!("{} ({commit}, {date})", env!("CARGO_PKG_VERSION"))
    });
    &VERSION
}

/// Help and version are answers; everything else is a wrong request.
pub(crate) fn explain(error: &clap::Error) -> ExitCode {
    let is_answer = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    // Whoever has stopped reading does not want the rest.
    drop(error.print());
    if is_answer {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_USAGE)
    }
}

/// Runs one command.
pub(crate) async fn run(cli: Cli, output: &Output) -> Result {
    let data = cli.data.or_else(|| {
        let named = Variables::from_process().optional("TOLLGATE_DATA", "folder of `tollgate dev`");
        named.map(PathBuf::from)
    });
    let data = data.as_deref();
    let find = || System::find(data);
    match cli.command {
        Command::Dev(args) => Box::pin(dev::run(args, data, output)).await,
        Command::Serve(args) => Box::pin(serve::run(args)).await,
        Command::Samples(args) => samples_cmd::run(args).await,
        Command::Migrate => Box::pin(migrate::run(data, output)).await,
        Command::Config(args) => config_cmd::run(&args, output),
        Command::Pepper(command) => Box::pin(pepper::run(command, find, output)).await,
        Command::Journal(command) => Box::pin(journal_cmd::run(command, find, output)).await,
        Command::Completions { shell } => completions(shell, output),
        Command::Letters(args) => Box::pin(letters::run(args, &find()?, output)).await,
        Command::Seed(command) => Box::pin(seed::run(command, &find()?, output)).await,
        Command::Org(command) => Box::pin(org::run(command, &find()?, output)).await,
        Command::Member(command) => Box::pin(member::run(command, &find()?, output)).await,
        Command::Invitation(command) => Box::pin(invitation::run(command, &find()?, output)).await,
        Command::User(command) => Box::pin(user::run(command, &find()?, output)).await,
        Command::Key(key::Key::Check { key }) => key::check(key, output),
        Command::Key(command) => Box::pin(key::run(command, &find()?, output)).await,
        Command::Wallet(command) => Box::pin(wallet_cmd::run(command, &find()?, output)).await,
        Command::Service(command) => Box::pin(service::run(command, &find()?, output)).await,
        Command::Route(command) => Box::pin(service::run_route(command, &find()?, output)).await,
        Command::Usage(command) => Box::pin(usage::run(command, &find()?, output)).await,
        Command::Anomaly(command) => Box::pin(anomaly::run(command, &find()?, output)).await,
        Command::AuditLog(command) => Box::pin(audit_log::run(command, &find()?, output)).await,
        Command::Audit(args) => Box::pin(audit::run(args, &find()?, output)).await,
        Command::Why(args) => Box::pin(why::run(args, &find()?, output)).await,
    }
}

fn completions(shell: Shell, output: &Output) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tollgate", &mut script);
    output.text(&String::from_utf8(script)?);
    Ok(())
}
