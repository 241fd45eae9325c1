//! `kedge image pull|import|export|ls|rm|prune`: the images of the built-in runtime, whether `kedge up` runs or not.

use crate::cli::{Image, Pull};
use crate::data_dir::DataDir;
use anyhow::{Context, Result, bail};
use kedge_containers::{Credentials, Reference};
use kedge_registry::{Config, Progress};
use kedge_runtime::embedded::Images;
use serde_json::json;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

/// How often a pull tells how far it is: a line of a log, or the same line of a terminal again.
const TELL_INTERVAL: Duration = Duration::from_secs(2);
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

/// Runs one image command.
pub(crate) async fn image(dir: &DataDir, command: &Image, json: bool) -> Result<()> {
    let images = open(dir)?;
    match command {
        Image::Import { file } => import(&images, file, json).await,
        Image::Pull(wanted) => pull(&images, wanted, json).await,
        Image::Export { image, file } => export(&images, image, file, json).await,
        Image::Prune { all } => prune(&images, *all, json).await,
        Image::Ls => list(&images, json).await,
        Image::Rm { image } => {
            images.remove(image).await?;
            println!(
                "{}",
                if json {
                    json!({"removed": image}).to_string()
                } else {
                    format!("removed {image}")
                }
            );
            Ok(())
        }
    }
}

fn open(dir: &DataDir) -> Result<Images> {
    if !kedge_host::is_root() {
        bail!(
            "images of the built-in runtime need root, or what an ordinary user has instead; with --hollow every image name exists"
        );
    }
    Ok(Images::open(&dir.runtime())?)
}

async fn import(images: &Images, file: &Path, json: bool) -> Result<()> {
    if !file.is_file() {
        bail!(
            "{} is not a file; give an OCI image archive or one of `docker save`",
            file.display()
        );
    }
    let imported = images
        .import(file.to_owned())
        .await
        .with_context(|| format!("import {}", file.display()))?;
    for image in imported {
        if json {
            println!(
                "{}",
                json!({"imported": image.tags, "id": image.id, "size_bytes": image.size_bytes})
            );
        } else {
            println!(
                "imported {} ({} KiB)",
                image.tags.join(", "),
                image.size_bytes / 1024
            );
        }
    }
    Ok(())
}

async fn pull(images: &Images, wanted: &Pull, json: bool) -> Result<()> {
    let reference: Reference = wanted
        .image
        .parse()
        .with_context(|| format!("{:?} is no name of an image", wanted.image))?;
    let registry = reference.registry().to_owned();
    let hosts = wanted.mirror.iter().chain([&registry]);
    let config = Config {
        plain_http: hosts.filter(|_| wanted.plain_http).cloned().collect(),
        mirrors: [(registry.clone(), wanted.mirror.clone())].into(),
        authorities: wanted.authority.clone(),
        variant: kedge_host::architecture_variant().map(str::to_owned),
        ..Config::new(kedge_host::architecture())
    };
    let credentials = credentials(wanted)?;
    let progress = Progress::default();
    let shown = Shown::new(&reference, json);
    let work = images.pull(config, &wanted.image, &credentials, &progress);
    let mut work = std::pin::pin!(work);
    let mut tell = tokio::time::interval(shown.interval());
    let pulled = loop {
        tokio::select! {
            biased;
            // The end is told at once, whatever else is due.
            pulled = &mut work => break pulled,
            _ = tell.tick() => shown.show(&progress),
        }
    };
    shown.end();
    let image = pulled?;
    if json {
        println!(
            "{}",
            json!({"pulled": reference.to_string(), "id": image.id, "size_bytes": image.size_bytes})
        );
    } else {
        println!("pulled {reference} ({} KiB)", image.size_bytes / 1024);
    }
    Ok(())
}

async fn export(images: &Images, image: &str, file: &Path, json: bool) -> Result<()> {
    let exported = images
        .export(image, file.to_owned())
        .await
        .with_context(|| format!("export {image}"))?;
    if json {
        println!("{}", json!({"exported": image, "id": exported.id, "file": file}));
    } else {
        println!("exported {image} to {}", file.display());
    }
    Ok(())
}

async fn prune(images: &Images, all: bool, json: bool) -> Result<()> {
    let pruned = images.prune(all).await?;
    for image in &pruned.images {
        let name = image.tags.first().unwrap_or(&image.id);
        if json {
            println!("{}", json!({"removed": name, "id": image.id}));
        } else {
            println!("removed {name}");
        }
    }
    if json {
        println!("{}", json!({"freed_bytes": pruned.freed_bytes}));
    } else {
        println!("freed {} KiB", pruned.freed_bytes / 1024);
    }
    Ok(())
}

fn credentials(wanted: &Pull) -> Result<Vec<Credentials>> {
    let (Some(username), Some(file)) = (&wanted.username, &wanted.password_file) else {
        return Ok(Vec::new());
    };
    let password = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(vec![Credentials {
        username: username.clone(),
        password: password.trim_end_matches(['\r', '\n']).to_owned(),
        ..Credentials::default()
    }])
}

/// How a pull is shown while it goes on.
struct Shown<'a> {
    reference: &'a Reference,
    json: bool,
    /// One line is drawn over and over.
    terminal: bool,
}

impl<'a> Shown<'a> {
    fn new(reference: &'a Reference, json: bool) -> Self {
        let terminal = !json && std::io::stdout().is_terminal();
        Self {
            reference,
            json,
            terminal,
        }
    }

    fn interval(&self) -> Duration {
        if self.terminal {
            REDRAW_INTERVAL
        } else {
            TELL_INTERVAL
        }
    }

    fn show(&self, progress: &Progress) {
        let (done, total) = (progress.done_bytes(), progress.total_bytes());
        // Nothing is known before the manifest.
        if total == 0 {
            return;
        }
        let image = self.reference;
        let line = if self.json {
            json!({"pulling": image.to_string(), "done_bytes": done, "total_bytes": total}).to_string()
        } else if done >= total {
            format!("unpacking {image}")
        } else {
            format!(
                "pulling {image}: {} of {} KiB, {} %",
                done / 1024,
                total / 1024,
                done * 100 / total
            )
        };
        if self.terminal {
            // To the beginning of the line, and what was longer goes.
            print!("\r{line}\x1b[K");
            // A terminal that is gone is noticed by the next line.
            drop(std::io::stdout().flush());
        } else {
            println!("{line}");
        }
    }

    /// Makes room for what comes next.
    fn end(&self) {
        if self.terminal {
            print!("\r\x1b[K");
        }
    }
}

async fn list(images: &Images, json: bool) -> Result<()> {
    let images = images.list().await?;
    if json {
        println!("{}", serde_json::to_string(&images)?);
        return Ok(());
    }
    println!("{:<48} {:<20} {:>10}", "IMAGE", "ID", "SIZE");
    for image in images {
        let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
        let size = format!("{} KiB", image.size_bytes / 1024);
        for tag in if image.tags.is_empty() {
            vec!["<none>".to_owned()]
        } else {
            image.tags
        } {
            println!("{tag:<48} {id:<20} {size:>10}");
        }
    }
    Ok(())
}
