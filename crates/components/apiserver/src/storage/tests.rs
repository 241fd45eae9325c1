use super::*;
use serde_json::json;

const WINDOW_CHANGES: usize = 1000;

fn pods() -> Collection {
    Collection::new("", "pods")
}

fn pod(name: &str, n: u64) -> Value {
    json!({"kind": "Pod", "metadata": {"name": name, "resourceVersion": "old", "labels": {"n": n}}, "spec": {"n": n}})
}

fn kinds(changes: &[Arc<Change>]) -> Vec<(&'static str, Revision)> {
    changes
        .iter()
        .map(|change| (change.kind.as_str(), change.revision))
        .collect()
}

#[test]
fn a_draft_has_a_hole_for_the_version_only() {
    let Draft { mut before, after } = draft(&pod("web", 1));
    before.extend_from_slice(b"77");
    before.extend_from_slice(&after);
    let printed: Value = serde_json::from_slice(&before).unwrap();
    assert_eq!(printed["metadata"]["resourceVersion"], "77");
    assert_eq!(
        (&printed["metadata"]["name"], &printed["spec"]["n"]),
        (&json!("web"), &json!(1))
    );
    assert_eq!(draft(&json!({})).before, br#"{"metadata":{"resourceVersion":""#);
}
use kedge_store::revisions::Draft;

#[tokio::test]
async fn who_was_answered_reads_what_it_wrote() {
    let storage = Storage::open(&StorageAt::Memory, WINDOW_CHANGES).unwrap();
    let place = Place::new("default", "web");
    let one = storage
        .create(&pods(), &place, &pod("web", 1), Keep::Durably)
        .await
        .unwrap();
    let found = storage.get(&pods(), &place).unwrap();
    assert_eq!(
        (
            found.revision,
            found.value()["metadata"]["resourceVersion"].clone()
        ),
        (one, json!(one.to_string()))
    );
    let two = storage
        .update(&pods(), &place, one, &pod("web", 2), Keep::Durably)
        .await
        .unwrap();
    assert!(
        storage
            .update(&pods(), &place, one, &pod("web", 3), Keep::Durably)
            .await
            .is_err()
    );
    assert_eq!(storage.get(&pods(), &place).unwrap().value()["spec"]["n"], 2);
    storage
        .delete(&pods(), &place, two, &pod("web", 2), Keep::Durably)
        .await
        .unwrap();
    assert!(storage.get(&pods(), &place).is_none());
}

#[tokio::test]
async fn pages_are_ordered_and_go_on_after_a_place() {
    let storage = Storage::open(&StorageAt::Memory, WINDOW_CHANGES).unwrap();
    for (namespace, name) in [("b", "2"), ("a", "1"), ("b", "1"), ("ab", "1")] {
        storage
            .create(
                &pods(),
                &Place::new(namespace, name),
                &pod(name, 0),
                Keep::Durably,
            )
            .await
            .unwrap();
    }
    let names = |page: &Page| -> Vec<String> {
        page.found
            .iter()
            .map(|f| format!("{}/{}", f.place.namespace, f.place.name))
            .collect()
    };
    let first = storage.page(&pods(), "", None, 3, |_| true);
    assert_eq!(
        (names(&first), first.remaining),
        (["a/1", "ab/1", "b/1"].map(str::to_owned).to_vec(), 1)
    );
    let rest = storage.page(&pods(), "", Some(&first.found[2].place), 3, |_| true);
    assert_eq!((names(&rest), rest.remaining), (vec!["b/2".to_owned()], 0));
    assert_eq!(names(&storage.page(&pods(), "a", None, 0, |_| true)), ["a/1"]);
    assert_eq!(
        names(&storage.page(&pods(), "b", Some(&Place::new("b", "1")), 0, |_| true)),
        ["b/2"]
    );
}

#[tokio::test]
async fn a_follower_sees_every_change_once_and_a_slow_one_is_told() {
    let storage = Storage::open(&StorageAt::Memory, WINDOW_CHANGES).unwrap();
    let place = Place::new("default", "web");
    let mut slow = storage.follow(&pods(), 0).unwrap();
    let mut follow = storage.follow(&pods(), 0).unwrap();
    let mut at = storage
        .create(&pods(), &place, &pod("web", 0), Keep::Durably)
        .await
        .unwrap();
    assert_eq!(kinds(&follow.next().await.unwrap()), [("ADDED", 1)]);
    assert!(follow.ready().unwrap().is_empty());
    for n in 1..=WINDOW_CHANGES as u64 {
        at = storage
            .update(&pods(), &place, at, &pod("web", n), Keep::Durably)
            .await
            .unwrap();
        assert_eq!(kinds(&follow.next().await.unwrap()), [("MODIFIED", at)]);
    }
    assert_eq!(slow.next().await.unwrap_err(), WatchGap { asked: 0, oldest: 1 });
    assert!(storage.follow(&pods(), 0).is_err());
    assert!(
        storage.follow(&pods(), at + 1).is_err(),
        "the future is a gap, too"
    );
    let change = storage
        .follow(&pods(), at - 1)
        .unwrap()
        .next()
        .await
        .unwrap()
        .remove(0);
    assert_eq!(
        change.previous_value().unwrap()["spec"]["n"],
        WINDOW_CHANGES as u64 - 1
    );
}

#[tokio::test]
async fn objects_and_positions_survive_a_restart() {
    let path = std::env::temp_dir().join(format!("kedge-apiserver-storage-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    let at = StorageAt::Directory(path.clone());
    let storage = Storage::open(&at, WINDOW_CHANGES).unwrap();
    let place = Place::new("default", "web");
    let one = storage
        .create(&pods(), &place, &pod("web", 1), Keep::Durably)
        .await
        .unwrap();
    let two = storage
        .update(&pods(), &place, one, &pod("web", 2), Keep::Durably)
        .await
        .unwrap();
    storage.close().await;

    let storage = Storage::open(&at, WINDOW_CHANGES).unwrap();
    assert_eq!(storage.get(&pods(), &place).unwrap().value()["spec"]["n"], 2);
    let changes = storage.follow(&pods(), one).unwrap().next().await.unwrap();
    assert_eq!(kinds(&changes), [("MODIFIED", two)]);
    assert!(
        changes[0].previous_value().is_none(),
        "replaced values are not kept"
    );
    storage.close().await;
    std::fs::remove_dir_all(path).unwrap();
}
