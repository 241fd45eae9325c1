//! `kedge image import|ls|rm`: the images of the built-in runtime, whether `kedge up` runs or not.

use crate::cli::Image;
use crate::data_dir::DataDir;
use anyhow::{Context, Result, bail};
use kedge_runtime::embedded::Images;
use serde_json::json;
use std::path::Path;

/// Runs one image command.
pub(crate) async fn image(dir: &DataDir, command: &Image, json: bool) -> Result<()> {
    let images = open(dir)?;
    match command {
        Image::Import { file } => import(&images, file, json).await,
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
