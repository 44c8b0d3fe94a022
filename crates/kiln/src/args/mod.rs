//! What one may type: the clap types, and nothing that acts on them.
//!
//! Commands never see these types; [`crate::settings`] turns them, with the
//! environment, into plain values.

mod server;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use server::{
    AzSetupArgs, GcArgs, OutputCommand, OutputDownloadArgs, OutputGetArgs, OutputListArgs, RunCancelArgs,
    RunCommand, RunListArgs, RunLogsArgs, RunRetryArgs, RunStartArgs, RunWatchArgs, ServeArgs, ServerArgs,
    TemplateCommand, TemplateDeleteArgs, TemplateGetArgs, TemplateListArgs, TemplatePutArgs,
};

/// Azure VM Image Builder for your own hardware.
///
/// Kiln takes an Azure VM Image Builder template unchanged, boots the base image it names in
/// local QEMU, runs its customizers, generalizes the guest and leaves a fixed VHD.
#[derive(Debug, Parser)]
#[command(
    name = "kiln",
    version,
    max_term_width = 100,
    propagate_version = false,
    disable_help_subcommand = true,
    after_help = "Exit status: 0 done, 1 the build or its input failed, 2 unexpected (or wrong usage).\n\
                  Files lie under $KILN_DATA, else $XDG_DATA_HOME/kiln, else ~/.local/share/kiln."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Say more about what happens, on stderr (-vv: even more)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build the image a template describes
    Build(BuildArgs),
    /// Check a template and list every problem in it
    Validate(ValidateArgs),
    /// Show what a build would do, in order, with digests and sizes
    Plan(PlanArgs),
    /// Base images: what there is, and how to get it
    #[command(subcommand)]
    Images(ImagesCommand),
    /// Try all that Kiln does in Windows on one of your own, and write a transcript
    CertifyWindows(CertifyWindowsArgs),
    /// Serve the API of Azure VM Image Builder on this host
    Serve(ServeArgs),
    /// Templates that a server keeps
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Runs: start, watch, cancel, and retry one that failed
    #[command(subcommand)]
    Run(RunCommand),
    /// What runs left: list it, fetch it
    #[command(subcommand)]
    Output(OutputCommand),
    /// Machines kept after each step of a build, for builds to come
    #[command(subcommand)]
    Checkpoints(CheckpointsCommand),
    /// Look into the machine of a run that failed
    Debug(DebugArgs),
    /// Remove runs, artifacts and inputs that nobody needs any more
    Gc(GcArgs),
    /// Print the commands that connect `az` or an Azure SDK to the server of this host
    AzSetup(AzSetupArgs),
    /// Look at this machine: what a build would have, and what is missing
    Doctor(DoctorArgs),
    /// Print the version
    Version(VersionArgs),
    /// Print a completion script for a shell
    #[command(
        after_help = "Examples:\n  kiln completions bash > ~/.local/share/bash-completion/completions/kiln\n  \
                      kiln completions zsh > \"${fpath[1]}/_kiln\"\n  \
                      kiln completions fish > ~/.config/fish/completions/kiln.fish"
    )]
    Completions(CompletionsArgs),
    /// Carry out the run that lies in a directory (started by `kiln build`)
    #[command(hide = true)]
    Worker(WorkerArgs),
    /// Write manual pages into a directory (for packages)
    #[command(hide = true)]
    Manual(ManualArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln build hello.json\n  kiln build hello.json -o ./out\n  \
                  kiln build hello.json --json > events.jsonl\n  \
                  cat hello.yaml | kiln build -\n\n\
                  Where a server runs, it does the build, and the result is downloaded.\n\
                  Ctrl-C once ends the build and cleans up; twice kills it.")]
pub struct BuildArgs {
    /// Template: JSON (comments and trailing commas allowed) or YAML; `-` reads standard input
    pub file: PathBuf,

    /// Directory for the VHD and its record; made where missing
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub output: PathBuf,

    /// Print run events as JSON lines on stdout, and a result object last
    #[arg(long)]
    pub json: bool,

    /// When the build fails, keep its machine in the run directory: see `kiln debug` (implies --local)
    #[arg(long, conflicts_with = "server")]
    pub keep_on_error: bool,

    /// Build without a server, even where one runs
    #[arg(long, conflicts_with = "server")]
    pub local: bool,

    #[command(flatten)]
    pub reuse: ReuseArgs,

    #[command(flatten)]
    pub server: ServerArgs,
}

/// What of earlier builds may serve, and what is kept for later ones.
#[derive(Debug, Args)]
#[command(next_help_heading = "Reuse")]
pub struct ReuseArgs {
    /// Reuse nothing of earlier builds (implies --local)
    #[arg(long, conflicts_with = "server")]
    pub fresh: bool,

    /// Keep no checkpoints for later builds (implies --local)
    #[arg(long, conflicts_with = "server")]
    pub no_checkpoints: bool,

    /// YAML file that says how long steps are good for, and which are secret (implies --local)
    #[arg(long, value_name = "FILE", conflicts_with = "server")]
    pub policy: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln validate hello.json\n  kiln validate hello.json --azure\n  \
                  kiln validate hello.json --json | jq -r '.problems[].pointer'\n\n\
                  Exit status 1 when there is an error; warnings and notes alone are 0.")]
pub struct ValidateArgs {
    /// Template: JSON (comments and trailing commas allowed) or YAML; `-` reads standard input
    pub file: PathBuf,

    /// Hold the template to what Azure accepts: "works here, not in Azure" becomes an error
    #[arg(long)]
    pub azure: bool,

    /// Print the problems as one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln plan hello.json\n  kiln plan hello.json --json | jq .plan.machine\n\n\
                  Scripts and files the template names are fetched and checked; no machine is started."
)]
pub struct PlanArgs {
    /// Template: JSON (comments and trailing commas allowed) or YAML; `-` reads standard input
    pub file: PathBuf,

    /// YAML file that says how long steps are good for, and which are secret
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// Print the plan as one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum ImagesCommand {
    /// Make a base image from its recipe
    Build(ImagesBuildArgs),
    /// Download a base image and check its digest
    Pull(ImagesPullArgs),
    /// List the base images of the catalog and of the library
    List(ImagesListArgs),
    /// Show all that is known about one base image
    Show(ImagesShowArgs),
    /// Put a disk image of your own into the library
    Import(ImagesImportArgs),
    /// Remove a base image from the library
    Remove(ImagesRemoveArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln images build debian-12\n\n\
                  A recipe installs packages into a tree and needs root or sub-uids; it says what is missing.")]
pub struct ImagesBuildArgs {
    /// Name in the catalog (see `kiln images list`)
    pub name: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln images pull ubuntu-22.04\n\n\
                  A broken download goes on where it stopped when the command is repeated.")]
pub struct ImagesPullArgs {
    /// Name in the catalog (see `kiln images list`)
    pub name: String,
}

#[derive(Debug, Args)]
pub struct ImagesListArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit status 1 when no version of it lies in the library.")]
pub struct ImagesShowArgs {
    /// Name of the image
    pub name: String,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln images import ./golden.qcow2 --name golden --platform Contoso:linux:golden\n  \
                  kiln images import ./golden.vhd --name golden --version 1.2.0 --generation 2 \\\n    \
                  --platform Contoso:linux:golden-gen2\n\n\
                  A Linux image must run cloud-init at boot: a build logs in through it. A Windows image is\n\
                  generalized, and a build gives it an answer file; or it is installed, with an account and a WinRM\n\
                  listener of its own, which stay in what is built from it:\n  \
                  kiln images import ./eval.vhdx --name eval --platform Contoso:windows:eval --os windows \\\n    \
                  --user builder --password-file /etc/kiln/eval.password"
)]
pub struct ImagesImportArgs {
    /// Disk image: raw, qcow2, VHD, VHDX or VMDK; its format is read from its bytes
    pub file: PathBuf,

    /// Name in the library
    #[arg(long)]
    pub name: String,

    /// Version; `latest` picks the highest [default: the time, as 20261123.1722]
    #[arg(long = "version", value_name = "VERSION")]
    pub image_version: Option<String>,

    /// PUBLISHER:OFFER:SKU a template finds it by; may be repeated
    #[arg(long, value_name = "P:O:S", required = true)]
    pub platform: Vec<String>,

    /// System inside
    #[arg(long, value_enum, default_value_t = OsArg::Linux)]
    pub os: OsArg,

    /// Generation it boots as: 1 is BIOS, 2 is UEFI [default: what the disk's layout shows]
    #[arg(long, value_enum)]
    pub generation: Option<GenerationArg>,

    /// Refuse the file unless its SHA-256 digest is this
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<String>,

    #[command(flatten)]
    pub installed: InstalledArgs,
}

/// How a build gets into a Windows that is installed already.
#[derive(Debug, Args)]
#[command(next_help_heading = "An installed Windows")]
pub struct InstalledArgs {
    /// An administrator's account that it has
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub user: Option<String>,

    /// File of this host with the account's password; a build reads it when it starts
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,

    /// Its WinRM listens over HTTP, and not over HTTPS
    #[arg(long, requires = "user", conflicts_with = "certificate_sha256")]
    pub winrm_http: bool,

    /// Port its WinRM listens on [default: 5986; over HTTP 5985]
    #[arg(long, value_name = "N", requires = "user")]
    pub winrm_port: Option<u16>,

    /// SHA-256 digest of its WinRM certificate [default: the first one it shows counts for the run]
    #[arg(long, value_name = "HEX", requires = "user")]
    pub certificate_sha256: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OsArg {
    Linux,
    Windows,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GenerationArg {
    #[value(name = "1")]
    One,
    #[value(name = "2")]
    Two,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln images remove debian-12\n  kiln images remove debian-12 12.20250101.0"
)]
pub struct ImagesRemoveArgs {
    /// Name of the image
    pub name: String,

    /// Version; needed when several lie in the library
    pub version: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln certify-windows --base windows-2022\n  \
                  kiln certify-windows --base windows-2022:20348.2700 -o ./certified\n  \
                  kiln certify-windows --base windows-2022 --updates \"IsInstalled=0 and Type='Software'\"\n\n\
                  Every customizer in each of its variants, a restart, updates, Sysprep and the VHD, on this host.\n\
                  What it proves is in the transcript: secrets are left out, and it can be sent in.")]
pub struct CertifyWindowsArgs {
    /// Base image of the library; its newest version unless one is given
    #[arg(long, value_name = "NAME[:VERSION]")]
    pub base: String,

    /// Directory for the transcript and the VHD; made where missing
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub output: PathBuf,

    /// Which updates are installed [default: definitions of Windows Defender]
    #[arg(long, value_name = "CRITERIA")]
    pub updates: Option<String>,

    /// When something does not pass, keep the disk in the run directory
    #[arg(long)]
    pub keep_on_error: bool,

    /// Print run events as JSON lines on stdout, and a result object last
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum CheckpointsCommand {
    /// List what is kept
    List(CheckpointsListArgs),
    /// Show what a build of a template would reuse, and why not more
    Explain(CheckpointsExplainArgs),
    /// Remove what is kept
    Clear(CheckpointsClearArgs),
}

#[derive(Debug, Args)]
pub struct CheckpointsListArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln checkpoints explain hello.json\n  \
                  kiln checkpoints explain hello.json --policy policy.yaml\n\n\
                  Scripts and files the template names are fetched, as they are a part of what decides.")]
pub struct CheckpointsExplainArgs {
    /// Template: JSON (comments and trailing commas allowed) or YAML; `-` reads standard input
    pub file: PathBuf,

    /// YAML file that says how long steps are good for, and which are secret
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln checkpoints clear\n  kiln checkpoints clear 3f9a1c0b\n\n\
                  What a build uses at this moment stays.")]
pub struct CheckpointsClearArgs {
    /// Only these, with what lies on them (see `kiln checkpoints list`); the beginning of an id will do
    pub ids: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln debug 3f9a1c\n  kiln debug 3f9a1c -- sudo journalctl -b -n 50\n  \
                  kiln debug 3f9a1c --forward 8080\n  kiln debug 3f9a1c --console\n\n\
                  A run leaves its machine when a customizer fails under `kiln build --keep-on-error`, or where the\n\
                  template's errorHandling says \"onCustomizerError\": \"abort\". The machine goes on from there on\n\
                  a layer of its own: what is done in it is gone afterwards, and what was left can be opened again.")]
pub struct DebugArgs {
    /// Id of the run, a unique end of it, or the run's directory
    pub run: String,

    /// The serial console in place of a shell over SSH
    #[arg(long, conflicts_with_all = ["screenshot", "command"])]
    pub console: bool,

    /// Put a picture of the machine's screen into a PNG file, and end
    #[arg(long, value_name = "FILE", conflicts_with = "command")]
    pub screenshot: Option<PathBuf>,

    /// Reach a port of the guest by a port of 127.0.0.1; may be repeated
    #[arg(long, value_name = "PORT")]
    pub forward: Vec<u16>,

    /// A command in place of a shell
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Exit status 0 when a build can run here, 1 when something it needs is missing.")]
pub struct DoctorArgs {
    /// Print the findings as one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Print one JSON object, with the file formats this build reads
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The run's directory
    pub run_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct ManualArgs {
    /// Directory for the pages; it must be there
    pub dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_build_of_ones_own_has_no_server() {
        for own in ["--local", "--keep-on-error"] {
            assert!(Cli::try_parse_from(["kiln", "build", "t.json", own]).is_ok());
            assert!(Cli::try_parse_from(["kiln", "build", "t.json", own, "--server", "unix:/s"]).is_err());
        }
    }

    #[test]
    fn a_retry_is_of_a_run_here_or_of_a_template_there() {
        let parse = |more: &[&str]| Cli::try_parse_from([&["kiln", "run", "retry"], more].concat());
        for fine in [
            &["3f9a1c"][..],
            &["./runs/x", "--file", "t.json", "-o", "out", "--json"],
            &["hello", "--run", "20261123T172233Z-hello-3f9a1c", "--server", "unix:/s", "--file", "-"],
        ] {
            assert!(parse(fine).is_ok(), "{fine:?}");
        }
        for wrong in [&[][..], &["t", "-o", "out", "--run", "r"], &["t", "-o", "out", "--server", "unix:/s"]]
        {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_installed_windows_needs_account_and_password_file() {
        let import =
            ["kiln", "images", "import", "x.vhdx", "--name", "n", "--platform", "p:o:s", "--os", "windows"];
        let parse = |more: &[&str]| Cli::try_parse_from(import.iter().chain(more)).is_ok();
        let own = ["--user", "u", "--password-file", "p"];
        assert!(parse(&[]) && parse(&own));
        for half in
            [&["--user", "u"][..], &["--password-file", "p"], &["--winrm-http"], &["--winrm-port", "1"]]
        {
            assert!(!parse(half), "{half:?}");
        }
        for (more, fine) in [
            (&["--winrm-http", "--winrm-port", "80"][..], true),
            (&["--certificate-sha256", "ab"], true),
            (&["--winrm-http", "--certificate-sha256", "ab"], false),
            (&["--winrm-port", "65536"], false),
        ] {
            assert_eq!(parse(&[&own[..], more].concat()), fine, "{more:?}");
        }
    }

    #[test]
    fn a_template_from_standard_input_is_a_dash() {
        let cli = Cli::try_parse_from(["kiln", "build", "-"]).unwrap();
        let Command::Build(build) = cli.command else { panic!("not a build") };
        assert_eq!(build.file, PathBuf::from("-"));
        assert_eq!(build.output, PathBuf::from("."));
    }
}
