//! `kedge image pull|import|ls|rm`: the images of the built-in runtime, whether `kedge up` runs or not.

use crate::cli::{Image, Pull};
use crate::data_dir::DataDir;
use anyhow::{Context, Result, bail};
use kedge_containers::{Credentials, Reference};
use kedge_registry::{Config, Progress};
use kedge_runtime::embedded::Images;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// How often a pull tells how far it is.
const TELL_INTERVAL: Duration = Duration::from_secs(2);

/// Runs one image command.
pub(crate) async fn image(dir: &DataDir, command: &Image, json: bool) -> Result<()> {
    let images = open(dir)?;
    match command {
        Image::Import { file } => import(&images, file, json).await,
        Image::Pull(wanted) => pull(&images, wanted, json).await,
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
        bail!("images of the built-in runtime need root; with --hollow every image name exists");
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
    let config = Config {
        plain_http: if wanted.plain_http {
            vec![registry]
        } else {
            Vec::new()
        },
        authorities: wanted.authority.clone(),
        ..Config::new(kedge_host::architecture())
    };
    let credentials = credentials(wanted)?;
    let progress = Progress::default();
    let work = images.pull(config, &wanted.image, &credentials, &progress);
    let mut work = std::pin::pin!(work);
    let mut tell = tokio::time::interval(TELL_INTERVAL);
    let image = loop {
        tokio::select! {
            biased;
            // The end is told at once, whatever else is due.
            pulled = &mut work => break pulled?,
            _ = tell.tick() => show(&reference, &progress, json),
        }
    };
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

fn show(reference: &Reference, progress: &Progress, json: bool) {
    let (done, total) = (progress.done_bytes(), progress.total_bytes());
    // Nothing is known before the manifest.
    if total == 0 {
        return;
    }
    if json {
        println!(
            "{}",
            json!({"pulling": reference.to_string(), "done_bytes": done, "total_bytes": total})
        );
    } else {
        println!("pulling {reference}: {} of {} KiB", done / 1024, total / 1024);
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
