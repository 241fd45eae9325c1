//! The walls of the house: which layer may import which, and what logic must never touch.

use crate::sources;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    Bins,
    Components,
    Logic,
    Io,
    Model,
    Libs,
    Test,
    Xtask,
}

impl Layer {
    const ALL: [Self; 8] = [
        Self::Bins,
        Self::Components,
        Self::Logic,
        Self::Io,
        Self::Model,
        Self::Libs,
        Self::Test,
        Self::Xtask,
    ];

    /// The layer of a crate by the folder it lies in, relative to the root.
    fn of(folder: &Path) -> Option<Self> {
        let mut parts = folder.iter().filter_map(|part| part.to_str());
        match (parts.next()?, parts.next()) {
            ("crates", Some("bins")) => Some(Self::Bins),
            ("crates", Some("components")) => Some(Self::Components),
            ("crates", Some("logic")) => Some(Self::Logic),
            ("crates", Some("io")) => Some(Self::Io),
            ("crates", Some("model")) => Some(Self::Model),
            ("crates", Some("libs")) => Some(Self::Libs),
            ("test", Some(_)) => Some(Self::Test),
            ("xtask", None) => Some(Self::Xtask),
            _ => None,
        }
    }

    /// Why a crate of this layer may not import one of `other`; `None` when it may.
    fn wall(self, other: Self) -> Option<&'static str> {
        use Layer::{Bins, Components, Io, Libs, Logic, Model, Test, Xtask};
        match (self, other) {
            (Xtask, _) => Some("xtask must build without the house"),
            (_, Xtask) => Some("chores are not a library"),
            (Test, _) => None,
            (_, Test) => Some("only tests may lean on test crates"),
            (Bins, Bins | Components | Logic | Io | Model | Libs) => None,
            (_, Bins) => Some("nothing may import a binary"),
            (Components, Logic | Io | Model) => None,
            (Components, Components) => Some("components meet only in wiring.rs"),
            (Logic, Logic | Model) => None,
            (Logic, Io) => Some("logic decides and must not touch the world"),
            (Io, Io | Model) => None,
            (Io, Logic) => Some("hands do not decide"),
            (Logic | Io | Model, Components) => Some("the house is built from the bottom"),
            (Model, Model) => None,
            (Model, Logic | Io) => Some("data knows neither decisions nor hands"),
            (Libs, Libs | Model) => None,
            (Libs, Components | Logic | Io) => Some("published libraries see the model only"),
            (Components | Logic | Io | Model, Libs) => Some("published libraries are for others"),
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Bins => "bins",
            Self::Components => "components",
            Self::Logic => "logic",
            Self::Io => "io",
            Self::Model => "model",
            Self::Libs => "libs",
            Self::Test => "test",
            Self::Xtask => "xtask",
        };
        f.write_str(name)
    }
}

/// A crate of the workspace and what it imports.
#[derive(Debug, Clone)]
pub(crate) struct House {
    name: String,
    /// Relative to the root.
    folder: PathBuf,
    /// Normal and build dependencies, by package name.
    imports: Vec<String>,
    /// What only its tests import.
    test_imports: Vec<String>,
}

/// Between binaries only the all-in-one may import the other two: their wiring is what it consists of.
const BINS_THAT_COMPOSE: &[&str] = &["kedge"];

/// Crates from outside that model and logic must not use: runtimes, sockets, clocks, chance.
const NOT_FOR_PURE_CRATES: &[&str] = &[
    "tokio",
    "hyper",
    "hyper-util",
    "kube",
    "mio",
    "nix",
    "rand",
    "reqwest",
    "rusqlite",
    "rustix",
    "tokio-rustls",
    "tokio-util",
    "tungstenite",
];

/// Words that give away a door to the world inside logic and model, with the reason.
const NOT_IN_PURE_SOURCES: &[(&str, &str)] = &[
    ("Instant::now", "time comes in by the door"),
    ("SystemTime::now", "time comes in by the door"),
    ("Timestamp::now", "time comes in by the door"),
    ("std::fs", "files are for io"),
    ("std::net::Tcp", "sockets are for io"),
    ("std::net::Udp", "sockets are for io"),
    ("std::process", "processes are for io"),
    ("std::thread", "logic has no threads"),
    ("std::env::var", "configuration comes by value"),
];

pub(crate) fn check() -> Result<()> {
    let houses = workspace()?;
    let mut breaches = breaches(&houses);
    breaches.extend(impure_sources(&houses)?);
    if breaches.is_empty() {
        println!("layers: {} crates, every wall stands", houses.len());
        return Ok(());
    }
    bail!(
        "{} walls are broken:\n  {}",
        breaches.len(),
        breaches.join("\n  ")
    )
}

/// Every broken wall between crates, as a sentence with the reason.
fn breaches(houses: &[House]) -> Vec<String> {
    let by_name: BTreeMap<&str, &House> = houses.iter().map(|house| (house.name.as_str(), house)).collect();
    let mut breaches = Vec::new();
    for house in houses {
        let Some(layer) = Layer::of(&house.folder) else {
            breaches.push(format!(
                "{} lies in {}, which is no layer",
                house.name,
                house.folder.display()
            ));
            continue;
        };
        if house
            .folder
            .file_name()
            .is_none_or(|folder| !names_match(&house.name, &folder.to_string_lossy()))
        {
            breaches.push(format!(
                "{} lies in folder {}: they must be alike",
                house.name,
                house.folder.display()
            ));
        }
        for (import, in_test) in house
            .imports
            .iter()
            .map(|import| (import, false))
            .chain(house.test_imports.iter().map(|import| (import, true)))
        {
            if let Some(reason) = breach(house, layer, import, in_test, &by_name) {
                let place = if in_test { "the tests of " } else { "" };
                breaches.push(format!(
                    "{place}{} ({layer}) must not import {import}: {reason}",
                    house.name
                ));
            }
        }
    }
    breaches
}

fn breach(
    house: &House,
    layer: Layer,
    import: &str,
    in_test: bool,
    by_name: &BTreeMap<&str, &House>,
) -> Option<&'static str> {
    let pure = matches!(layer, Layer::Logic | Layer::Model);
    let Some(other) = by_name.get(import) else {
        return (pure && NOT_FOR_PURE_CRATES.contains(&import)).then_some("logic and model are pure");
    };
    let other_layer = Layer::of(&other.folder)?;
    if layer == Layer::Bins && other_layer == Layer::Bins && !BINS_THAT_COMPOSE.contains(&house.name.as_str())
    {
        return Some("only the all-in-one is made of other binaries");
    }
    // Fixtures are what tests of every layer may share.
    if in_test && other_layer == Layer::Test {
        return None;
    }
    layer.wall(other_layer)
}

fn names_match(package: &str, folder: &str) -> bool {
    package.strip_prefix("kedge-").unwrap_or(package) == folder
}

fn impure_sources(houses: &[House]) -> Result<Vec<String>> {
    let root = sources::root();
    let mut breaches = Vec::new();
    for house in houses {
        if !matches!(Layer::of(&house.folder), Some(Layer::Logic | Layer::Model)) {
            continue;
        }
        for file in sources::rust_files(&root.join(&house.folder).join("src"))? {
            let text = sources::read(&file)?;
            let shown = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
            breaches.extend(
                impure_lines(&text)
                    .into_iter()
                    .map(|(line, why)| format!("{shown}:{line}: {why}")),
            );
        }
    }
    Ok(breaches)
}

/// Lines that reach for the world. Tests at the end of a file may.
fn impure_lines(text: &str) -> Vec<(usize, String)> {
    let code = text
        .lines()
        .enumerate()
        .take_while(|(_, line)| !line.contains("#[cfg(test)]"));
    let mut found = Vec::new();
    for (at, line) in code {
        let line = line.split("//").next().unwrap_or_default();
        for (word, reason) in NOT_IN_PURE_SOURCES {
            if line.contains(word) {
                found.push((at + 1, format!("{word}: {reason}")));
            }
        }
    }
    found
}

/// Reads the workspace from cargo.
fn workspace() -> Result<Vec<House>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        manifest_path: PathBuf,
        dependencies: Vec<Dependency>,
    }
    #[derive(Deserialize)]
    struct Dependency {
        name: String,
        kind: Option<String>,
    }

    let root = sources::root();
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(program)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(&root)
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let house = |package: Package| {
        let folder = package.manifest_path.parent().unwrap_or(&root).to_owned();
        let (tests, imports): (Vec<_>, Vec<_>) = package
            .dependencies
            .into_iter()
            .partition(|dependency| dependency.kind.as_deref() == Some("dev"));
        let names = |list: Vec<Dependency>| list.into_iter().map(|dependency| dependency.name).collect();
        House {
            name: package.name,
            folder: folder.strip_prefix(&root).unwrap_or(&folder).to_owned(),
            imports: names(imports),
            test_imports: names(tests),
        }
    };
    Ok(metadata.packages.into_iter().map(house).collect())
}

/// Draws the workspace: one street a layer, one house a crate.
pub(crate) fn city() -> Result<()> {
    let root = sources::root();
    let houses = workspace()?;
    let mut total = 0;
    for layer in Layer::ALL {
        let street: Vec<&House> = houses
            .iter()
            .filter(|house| Layer::of(&house.folder) == Some(layer))
            .collect();
        if street.is_empty() {
            continue;
        }
        println!("{layer}");
        for house in street {
            let mut lines = 0;
            let mut files = 0;
            for file in sources::rust_files(&root.join(&house.folder))? {
                lines += sources::read(&file)?.lines().count();
                files += 1;
            }
            total += lines;
            let mut imports: Vec<&str> = house
                .imports
                .iter()
                .filter_map(|import| import.strip_prefix("kedge-"))
                .collect();
            imports.sort_unstable();
            let floors = "▇".repeat(lines / 500 + 1);
            println!(
                "  {:<18}{lines:>6} lines {files:>3} files  {floors}  {}",
                house.name,
                imports.join(" ")
            );
        }
    }
    println!("{total} lines in {} crates", houses.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn house(folder: &str, imports: &[&str]) -> House {
        let name = match folder.rsplit('/').next() {
            Some("kedge") => "kedge".to_owned(),
            Some(name) => format!("kedge-{name}"),
            None => String::new(),
        };
        let imports = imports.iter().map(|import| (*import).to_owned()).collect();
        House {
            name,
            folder: PathBuf::from(folder),
            imports,
            test_imports: Vec::new(),
        }
    }

    #[test]
    fn every_broken_wall_is_told_with_its_reason() {
        let houses = [
            house("crates/model/wire", &["serde", "tokio"]),
            house("crates/logic/link", &["kedge-wire", "kedge-store"]),
            house("crates/io/store", &["kedge-link", "tokio"]),
            house(
                "crates/components/edged",
                &["kedge-link", "kedge-store", "kedge-edgehub"],
            ),
            house("crates/components/edgehub", &["kedge-wire"]),
            house("crates/bins/edgecore", &["kedge-edged", "kedge-cloudcore"]),
            house("crates/bins/cloudcore", &[]),
            house("crates/bins/kedge", &["kedge-edgecore", "kedge-cloudcore"]),
        ];
        assert_eq!(
            breaches(&houses),
            [
                "kedge-wire (model) must not import tokio: logic and model are pure",
                "kedge-link (logic) must not import kedge-store: logic decides and must not touch the world",
                "kedge-store (io) must not import kedge-link: hands do not decide",
                "kedge-edged (components) must not import kedge-edgehub: components meet only in wiring.rs",
                "kedge-edgecore (bins) must not import kedge-cloudcore: only the all-in-one is made of other binaries",
            ]
        );
    }

    #[test]
    fn a_clock_in_logic_is_found_and_one_in_its_tests_is_not() {
        let text = "fn now() {\n    Instant::now();\n    // Instant::now() in prose\n}\n#[cfg(test)]\nmod tests { fn x() { Instant::now(); } }\n";
        assert_eq!(
            impure_lines(text),
            [(2, "Instant::now: time comes in by the door".to_owned())]
        );
    }

    #[test]
    fn this_workspace_keeps_its_walls() {
        let houses = workspace().unwrap();
        assert!(houses.len() > 10);
        assert_eq!(breaches(&houses), Vec::<String>::new());
        assert_eq!(impure_sources(&houses).unwrap(), Vec::<String>::new());
    }
}
