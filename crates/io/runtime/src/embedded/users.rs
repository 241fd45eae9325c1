//! Who a container runs as, when the image says it by name.

use kedge_containers::UserNamespace;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// `/etc/passwd` of an image; nobody has more users than fit here.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    /// Empty if the image does not say.
    pub(super) home: String,
}

/// The user as the node counts users, where a pod has its own. The error says which the pod does not have.
pub(super) fn on_node(user: &User, ids: Option<&UserNamespace>) -> Result<u32, String> {
    let Some(ids) = ids else {
        return Ok(user.uid);
    };
    let lacks = |kind: &str, id: u32| {
        format!("{kind} {id} is not among those of a pod with users of its own (hostUsers: false)")
    };
    let mut groups = user.groups.iter().chain([&user.gid]);
    if let Some(group) = groups.find(|group| ids.gids.on_node(**group).is_none()) {
        return Err(lacks("group", *group));
    }
    ids.uids.on_node(user.uid).ok_or_else(|| lacks("user", user.uid))
}

/// Resolves `user[:group]`, names or numbers, with the image's own files. The error is the part that is unknown.
pub(super) fn resolve(text: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (user, of_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let wanted = if user.is_empty() { "0" } else { user };
    let line = lines(passwd).find(|fields| fields.first() == Some(&wanted) || fields.get(2) == Some(&wanted));
    let named = |index: usize| line.as_ref().and_then(|fields| fields.get(index)?.parse().ok());
    let uid = match (user, user.parse()) {
        ("", _) => 0,
        (_, Ok(number)) => number,
        (_, Err(_)) => named(2).ok_or_else(|| format!("user {user}"))?,
    };
    let gid = match of_group {
        Some(name) => number_of_group(name, group).ok_or_else(|| format!("group {name}"))?,
        None => named(3).unwrap_or(0),
    };
    let name = line
        .as_ref()
        .and_then(|fields| fields.first().copied())
        .unwrap_or_default();
    let home = line.as_ref().and_then(|fields| fields.get(5).copied());
    Ok(User {
        uid,
        gid,
        groups: groups_of(name, group),
        home: home.unwrap_or_default().to_owned(),
    })
}

/// Finds a file in stacked layers: the uppermost that has it counts, and a deletion ends the search.
pub(super) fn read_in_layers(layers: &[PathBuf], path: &str) -> String {
    for layer in layers.iter().rev() {
        let Some(file) = plain_file(layer, Path::new(path)) else {
            continue;
        };
        let Ok(kind) = std::fs::symlink_metadata(&file) else {
            continue;
        };
        if kind.file_type().is_char_device() {
            break;
        }
        let mut text = String::new();
        let read = File::open(&file).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
        return read.map(|_| text).unwrap_or_default();
    }
    String::new()
}

/// The path below a layer, if no part of it is a symbolic link, which could lead out of the layer.
fn plain_file(layer: &Path, path: &Path) -> Option<PathBuf> {
    let mut at = layer.to_owned();
    for name in path {
        at.push(name);
        if std::fs::symlink_metadata(&at).ok()?.is_symlink() {
            return None;
        }
    }
    Some(at)
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(':').collect())
}

fn number_of_group(name: &str, group: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    lines(group)
        .find(|fields| fields.first() == Some(&name))?
        .get(2)?
        .parse()
        .ok()
}

fn groups_of(user: &str, group: &str) -> Vec<u32> {
    if user.is_empty() {
        return Vec::new();
    }
    lines(group)
        .filter(|fields| {
            fields
                .get(3)
                .is_some_and(|members| members.split(',').any(|member| member == user))
        })
        .filter_map(|fields| fields.get(2)?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:100:App:/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\ndialout:x:20:other,app\n";

    #[test]
    fn names_and_numbers_are_resolved() {
        let of = |text| resolve(text, PASSWD, GROUP).map(|user| (user.uid, user.gid, user.groups));
        assert_eq!(of(""), Ok((0, 0, vec![])));
        assert_eq!(of("app"), Ok((1000, 100, vec![20])));
        assert_eq!(of("1000"), Ok((1000, 100, vec![20])));
        assert_eq!(of("app:dialout"), Ok((1000, 20, vec![20])));
        assert_eq!(of("77:88"), Ok((77, 88, vec![])));
        let home = |text| resolve(text, PASSWD, GROUP).map(|user| user.home);
        assert_eq!(
            (home(""), home("1000"), home("77")),
            (Ok("/root".into()), Ok("/".into()), Ok(String::new()))
        );
        assert_eq!(of("nobody"), Err("user nobody".to_owned()));
        assert_eq!(of("app:wheel"), Err("group wheel".to_owned()));
    }
}
