//! Images that nobody uses.

#![allow(clippy::unwrap_used)] // a test that cannot go on shall stop

mod site;

use kedge_pods::image_gc::Policy;
use kedge_runtime::Hollow;
use kedge_runtime::hollow::Images;
use site::{Start, Troubled, named, plain, wait};
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn unused_images_go_and_those_of_pods_stay() {
    let images = ["web:1", "old:1", "pause:3.6"].map(str::to_owned);
    let mut runtime = Troubled::default();
    runtime.hollow = Hollow::with_images(Images::Only(images.into()));
    let node = Start {
        runtime: Arc::new(runtime),
        configure: |config| {
            // Every disk is full enough, so that the test need not fill one.
            config.images.gc = Some(Policy {
                high_percent: 0,
                low_percent: 0,
                ..Policy::default()
            });
            config.images.sandbox = "pause:3.6".to_owned();
        },
        ..Start::with(&[named("web", "u1", plain())])
    }
    .node();
    node.wait_running("c").await;
    tokio::time::sleep(Duration::from_secs(299)).await;
    use kedge_runtime::Runtime as _;
    let left = async || {
        let images = node.runtime.hollow.images().await.unwrap();
        let mut names: Vec<String> = images.into_iter().flat_map(|image| image.tags).collect();
        names.sort();
        names
    };
    assert_eq!(left().await.len(), 3, "images are looked at every five minutes");
    wait("the unused image is gone", async || {
        (left().await.len() == 2).then_some(())
    })
    .await;
    assert!(
        left().await.iter().all(|name| !name.contains("old")),
        "{:?}",
        left().await
    );
    node.wait_event(&["FreeDiskSpaceFailed"]).await;
    node.stop().await;
}
