//! What can be typed.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Kubernetes stretched to the edge: a cloud and an edge in one process.
#[derive(Debug, Parser)]
#[command(name = "kedge", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Where everything is kept.
    #[arg(long, global = true, value_name = "DIR", default_value = "/var/lib/kedge")]
    pub(crate) data_dir: PathBuf,
    /// One JSON object a line instead of text for people.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the API, CloudCore and EdgeCore, and stay.
    Up(Up),
    /// Stop the running `kedge up`, its containers and its network; the data stays.
    Down,
    /// Tell whether `kedge up` runs, and its nodes and pods.
    Status,
    /// Images of the built-in container runtime.
    #[command(subcommand)]
    Image(Image),
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Port of the Kubernetes API on 127.0.0.1.
    #[arg(long, default_value_t = 6443, value_name = "PORT")]
    pub(crate) api_port: u16,
    /// Port of the cloud-edge link; certificates are served on the port two above, log streams four above.
    #[arg(long, default_value_t = 10000, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..=65531))]
    pub(crate) hub_port: u16,
    /// Name of the edge node [default: the host name].
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Option<String>,
    /// Import a thermometer, run it on the edge, pull the plug, and show what happens.
    #[arg(long)]
    pub(crate) demo: bool,
    /// Containers that exist in memory only: needs neither root nor what an ordinary user needs instead.
    #[arg(long)]
    pub(crate) hollow: bool,
    /// What is logged to DATA_DIR/kedge.log, for example info,kedge_link=debug.
    #[arg(long, default_value = "info", value_name = "FILTER")]
    pub(crate) log: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Import an OCI image archive, or one of `docker save`.
    Import {
        /// The archive, a tar file.
        file: PathBuf,
    },
    /// Fetch an image from its registry.
    Pull(Pull),
    /// Write an image to an OCI archive, which other tools import, too.
    Export {
        /// Name or id.
        image: String,
        /// The archive, which appears when it is whole.
        file: PathBuf,
    },
    /// List the images on this node.
    Ls,
    /// Remove an image that no container uses.
    Rm {
        /// Name or id.
        image: String,
    },
    /// Remove images without a name that no container uses, and pulls that broke off.
    Prune {
        /// Images with a name, too.
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// For example `nginx:1.29` or `registry.example:5000/gate@sha256:…`.
    pub(crate) image: String,
    /// Speak to the registry and its mirrors without TLS.
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// Ask this host first, by the names of the image's own registry; may be given several times.
    #[arg(long, value_name = "HOST")]
    pub(crate) mirror: Vec<String>,
    /// A file with more authorities in PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) authority: Vec<PathBuf>,
    /// Who asks.
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub(crate) username: Option<String>,
    /// A file that holds the password, for example /dev/stdin.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
}
