//! Many seeds, the remembered ones, and the one to replay.

use kedge_sim::{Violation, run, run_and_trace};

/// Seeds of an ordinary run. Each is some hundred faults and changes; together they take some ten seconds.
/// `KEDGE_SIM_SEEDS=<n>` runs more.
const SEEDS: u64 = 150;
const THREADS: u64 = 2;

/// Seeds that find a mistake which was put in on purpose to see whether it is found, or one of the simulation.
const REMEMBERED: [(u64, &str); 7] = [
    (
        6,
        "two changes of one key given to the store at a time: the second is acknowledged while the first fails",
    ),
    (
        10,
        "a cloud without a record sends a new uid over an old one; the edge must make the delete itself",
    ),
    (
        18,
        "a digest that comes late must replace what an old memory says, or what the node holds stays there for good",
    ),
    (
        20,
        "a cloud whose watch lags must not set a node back that another cloud has served",
    ),
    (
        26,
        "without retries an official edge that dropped a message from its full queue stays behind for good",
    ),
    (
        209,
        "records of two uids under one name: the older one must be forgotten, too",
    ),
    (
        3566,
        "an edge acknowledges what is older than what it holds, so its record may be older (the check was wrong)",
    ),
];

#[test]
fn many_seeds_keep_the_contract() {
    let seeds =
        std::env::var("KEDGE_SIM_SEEDS").map_or(SEEDS, |n| n.parse().expect("KEDGE_SIM_SEEDS is a number"));
    let first_violation = |thread: u64| {
        (thread..seeds)
            .step_by(THREADS as usize)
            .find_map(|seed| run(seed).err())
    };
    let violations: Vec<Violation> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || first_violation(thread)))
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().expect("a run does not panic"))
            .collect()
    });
    if let Some(violation) = violations.first() {
        panic!("\n{violation}");
    }
}

#[test]
fn remembered_seeds_keep_the_contract() {
    for (seed, lesson) in REMEMBERED {
        if let Err(violation) = run(seed) {
            panic!("\n{violation}\nthis seed is remembered because: {lesson}");
        }
    }
}

#[test]
fn a_seed_always_gives_the_same_run() {
    let (one, other) = (run(7), run(7));
    assert_eq!(one.ok(), other.ok());
}

/// Does nothing unless a seed is named in the environment; then a violation shows the whole run.
#[test]
fn replay() {
    let Ok(seed) = std::env::var("KEDGE_SIM_SEED") else {
        return;
    };
    let seed = seed.parse().expect("KEDGE_SIM_SEED is a number");
    match run_and_trace(seed, usize::MAX) {
        Ok(report) => println!("seed {seed} keeps the contract: {report:?}"),
        Err(violation) => panic!("\n{violation}"),
    }
}
