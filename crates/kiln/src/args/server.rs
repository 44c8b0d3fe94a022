//! Arguments of the commands that are a server, or talk to one.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln serve\n  kiln serve --data /srv/kiln --listen 0.0.0.0:8441\n  \
                  kiln serve --example-config > kiln.yaml\n  \
                  printf %s \"$SECRET\" | kiln serve --hash-secret\n\n\
                  Flags win over the environment (KILN_CONFIG, KILN_DATA), the environment over the file.\n\
                  Without any: the user's data folder, https://localhost:8441 and a local socket.\n\
                  Ctrl-C or SIGTERM ends the server; runs under way go on, and the next server finds them.")]
pub struct ServeArgs {
    /// Configuration file (YAML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Folder for everything the server keeps
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Address to serve HTTPS on; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Vec<String>,

    /// Unix socket for commands on this host
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Print a configuration file with every key explained, and end
    #[arg(long, exclusive = true)]
    pub example_config: bool,

    /// Read a secret from standard input, print what the configuration holds of it, and end
    #[arg(long, exclusive = true)]
    pub hash_secret: bool,
}

/// Which server, and where in it.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Server: https://HOST[:PORT] or unix:PATH [default: $KILN_SERVER, else the one of this host]
    #[arg(long, value_name = "ADDRESS", help_heading = "Server")]
    pub server: Option<String>,

    /// Certificate authority to trust, PEM [default: $KILN_CA_FILE]
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub ca_file: Option<PathBuf>,

    /// Subscription id [default: the server's first]
    #[arg(long, value_name = "ID", help_heading = "Server")]
    pub subscription: Option<String>,

    /// Resource group [default: the server's first]
    #[arg(short = 'g', long, value_name = "NAME", help_heading = "Server")]
    pub resource_group: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Store a template; its scripts and files are fetched and kept with it
    Put(TemplatePutArgs),
    /// Show a stored template
    Get(TemplateGetArgs),
    /// List stored templates
    List(TemplateListArgs),
    /// Delete a template; what its runs left stays
    Delete(TemplateDeleteArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln template put hello.json\n  \
                  kiln template put hello.json --name hello-2 --replace\n\n\
                  Files of this host that the template names (file:///…) are uploaded.")]
pub struct TemplatePutArgs {
    /// Template: JSON (comments and trailing commas allowed) or YAML; `-` reads standard input
    pub file: PathBuf,

    /// Name to store it under [default: the template's own, else the file's]
    #[arg(long)]
    pub name: Option<String>,

    /// Put it in the place of a template of that name
    #[arg(long)]
    pub replace: bool,

    /// Print the stored template as one JSON object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Args)]
pub struct TemplateGetArgs {
    /// Name of the template
    pub name: String,

    /// Print the whole template as one JSON object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Args)]
pub struct TemplateListArgs {
    /// Of all resource groups
    #[arg(long, conflicts_with = "resource_group")]
    pub all: bool,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln template delete hello\n  kiln template delete hello --force --purge"
)]
pub struct TemplateDeleteArgs {
    /// Name of the template
    pub name: String,

    /// Even while it runs or is being made: its run is canceled
    #[arg(long)]
    pub force: bool,

    /// Remove what its runs left, too
    #[arg(long)]
    pub purge: bool,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Subcommand)]
pub enum RunCommand {
    /// Run a stored template
    Start(RunStartArgs),
    /// Run again what failed, from the step that failed
    Retry(RunRetryArgs),
    /// Show a run from its beginning, and follow it to its end
    Watch(RunWatchArgs),
    /// Ask a run to end
    Cancel(RunCancelArgs),
    /// List runs, newest first
    List(RunListArgs),
    /// Print customization.log of a run
    Logs(RunLogsArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln run start hello\n  kiln run start hello --watch\n\n\
                  Ctrl-C ends the watching, not the run: `kiln run cancel` does that.")]
pub struct RunStartArgs {
    /// Name of the template
    pub template: String,

    /// Follow the run to its end; the exit status is then the run's
    #[arg(long)]
    pub watch: bool,

    /// Print one JSON object; with --watch the run's events as JSON lines, and a result last
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln run retry 3f9a1c\n  kiln run retry 3f9a1c --file hello.json\n  \
                  kiln run retry hello --file hello.json\n\n\
                  What was good for the failed run is reused, whatever its age is now. Scripts and files of a run of\n\
                  this host are fetched anew; a server has those of its templates as they were stored.")]
pub struct RunRetryArgs {
    /// Run of this host: its id, the end of that, or its directory; or the name of a server's template
    pub name: String,

    /// Which of the template's runs [default: the newest]
    #[arg(long, value_name = "ID")]
    pub run: Option<String>,

    /// Corrected template: JSON (comments and trailing commas allowed) or YAML; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Directory for the VHD and its record [default: the failed run's]
    #[arg(short, long, value_name = "DIR", conflicts_with_all = ["run", "server"])]
    pub output: Option<PathBuf>,

    /// Print run events as JSON lines on stdout, and a result object last
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln run watch hello\n  kiln run watch hello --json\n\n\
                  Ctrl-C ends the watching, not the run: `kiln run cancel` does that.")]
pub struct RunWatchArgs {
    /// Name of the template
    pub template: String,

    /// Which of its runs [default: the newest]
    #[arg(long, value_name = "ID")]
    pub run: Option<String>,

    /// Print the run's events as JSON lines, and a result object last
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Args)]
pub struct RunCancelArgs {
    /// Name of the template
    pub template: String,

    /// Kill the run when it does not end by itself
    #[arg(long)]
    pub force: bool,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Args)]
pub struct RunListArgs {
    /// Name of the template [default: all templates]
    pub template: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln run logs hello\n  kiln run logs hello --follow\n  \
                  kiln run logs hello > customization.log")]
pub struct RunLogsArgs {
    /// Name of the template
    pub template: String,

    /// Which of its runs [default: the newest]
    #[arg(long, value_name = "ID")]
    pub run: Option<String>,

    /// Go on until the run ends
    #[arg(short, long)]
    pub follow: bool,

    /// Print each line as a JSON object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Subcommand)]
pub enum OutputCommand {
    /// List what a template's runs left
    List(OutputListArgs),
    /// Show one run output
    Get(OutputGetArgs),
    /// Download the file of a run output, and its record
    Download(OutputDownloadArgs),
}

#[derive(Debug, Args)]
pub struct OutputListArgs {
    /// Name of the template
    pub template: String,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Args)]
pub struct OutputGetArgs {
    /// Name of the template
    pub template: String,

    /// Name of the run output
    pub name: String,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln output download hello\n  kiln output download hello hello-vhd -o ./out\n\n\
                  Blocks of zeros become holes in the file; its digest is checked before it appears."
)]
pub struct OutputDownloadArgs {
    /// Name of the template
    pub template: String,

    /// Name of the run output [default: all]
    pub name: Option<String>,

    /// Directory for the file and its record; made where missing
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub output: PathBuf,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "How long what is kept is the server's configuration (retention).")]
pub struct GcArgs {
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln az-setup\n  eval \"$(kiln az-setup --shell)\"\n  \
                  eval \"$(kiln az-setup --sdk)\" && python3 build.py\n\n\
                  No secret is printed: the commands read it from the file where the server keeps it.")]
pub struct AzSetupArgs {
    /// Data folder of the server [default: as for `kiln serve`]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// In a form that a POSIX shell evaluates
    #[arg(long)]
    pub shell: bool,

    /// Environment variables for the Azure SDKs instead of commands for `az`
    #[arg(long)]
    pub sdk: bool,

    /// Sign in as the host's managed identity instead of as the operator
    #[arg(long, conflicts_with = "sdk")]
    pub identity: bool,

    /// Print one JSON object
    #[arg(long, conflicts_with_all = ["shell", "sdk", "identity"])]
    pub json: bool,
}
