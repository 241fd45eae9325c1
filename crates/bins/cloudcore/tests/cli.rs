//! Whole transcripts of the command line.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use expect_test::{Expect, expect, expect_file};
use kedge_cloudcore::tokens::shared;
use kedge_pki::{JoinClaims, JoinToken, UnixTime};
use std::process::Command;
use std::time::Duration;
use support::{Directory, World};

/// Runs the program: exit code, standard output, standard error.
fn cloudcore(args: &[&str]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_cloudcore"))
        .env_remove("KUBERNETES_SERVICE_HOST")
        .args(args)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

fn transcript(args: &[&str]) -> String {
    let (code, stdout, stderr) = cloudcore(args);
    format!("$ cloudcore {}\n{stdout}{stderr}[{code}]\n", args.join(" "))
}

fn check(args: &[&str], expect: Expect) {
    expect.assert_eq(&transcript(args));
}

/// The address of this machine is the only thing that differs from one to another.
fn with_address_hidden(text: &str) -> String {
    let (before, after) = text.split_once("advertiseAddress:\n    - ").unwrap();
    let (_, after) = after.split_once('\n').unwrap();
    format!("{before}advertiseAddress:\n    - THIS_MACHINE\n{after}")
}

#[test]
fn the_printed_configurations() {
    let (_, printed, _) = cloudcore(&["--defaultconfig"]);
    expect_file!["snapshots/defaultconfig.yaml"].assert_eq(&with_address_hidden(&printed));
    let (_, printed, _) = cloudcore(&["--minconfig"]);
    expect_file!["snapshots/minconfig.yaml"].assert_eq(&with_address_hidden(&printed));
}

#[test]
fn help_and_versions() {
    check(
        &["--help"],
        expect![[r#"
        $ cloudcore --help
        Carries pods and their configuration between the Kubernetes API and edge nodes

        Usage: cloudcore [OPTIONS]
               cloudcore <COMMAND>

        Commands:
          token  Print a join token: the shared one, or with --node a new one for that node alone
          help   Print this message or the help of the given subcommand(s)

        Options:
              --config <FILE>    The configuration file [default: /etc/kubeedge/config/cloudcore.yaml]
              --defaultconfig    Print every key of the configuration with its default, and exit
              --minconfig        Print the keys to begin with, and exit
              --version[=<raw>]  Print the version, and exit; `--version=raw` prints all there is to say [possible values: true, false, raw]
          -v, --v <LEVEL>        How much the log says; from 4 on it says all that kedge.logFilter would
          -h, --help             Print help
        [0]
    "#]],
    );
    check(
        &["token", "--help"],
        expect![[r#"
        $ cloudcore token --help
        Print a join token: the shared one, or with --node a new one for that node alone

        Usage: cloudcore token [OPTIONS]

        Options:
              --node <NAME>    The node that may join with the token, once and with one key
              --ttl <TIME>     How long a token of one node lives, for example 30m or 24h [default: 1h]
              --config <FILE>  The configuration file [default: /etc/kubeedge/config/cloudcore.yaml]
          -h, --help           Print help
        [0]
    "#]],
    );
    check(
        &["--version"],
        expect![[r#"
        $ cloudcore --version
        KubeEdge v1.23.1-kedge.0.1.0
        [0]
    "#]],
    );
    check(
        &["--version=raw"],
        expect![[r#"
        $ cloudcore --version=raw
        gitVersion: v1.23.1-kedge.0.1.0
        kubeedge: v1.23.1
        kedge: 0.1.0
        platform: linux/x86_64
        [0]
    "#]],
    );
    check(
        &["--version=sometimes"],
        expect![[r#"
        $ cloudcore --version=sometimes
        error: invalid value 'sometimes' for '--version[=<raw>]'
          [possible values: true, false, raw]

        For more information, try '--help'.
        [2]
    "#]],
    );
    check(
        &["--defaultconfig", "--minconfig"],
        expect![[r#"
        $ cloudcore --defaultconfig --minconfig
        error: the argument '--defaultconfig' cannot be used with '--minconfig'

        Usage: cloudcore --defaultconfig

        For more information, try '--help'.
        [2]
    "#]],
    );
}

#[test]
fn what_is_wrong_with_the_configuration_is_told_with_the_way_out() {
    let directory = Directory::new("cli");
    let file = directory.0.join("cloudcore.yaml");
    let path = file.display().to_string();
    let check = |text: &str, expect: Expect| {
        std::fs::write(&file, text).unwrap();
        expect.assert_eq(&transcript(&["--config", &path]).replace(&path, "FILE"));
    };
    check(
        "modules: {cloudHub: {nodeLimit: none}}\nkedge: {logFormat: xml}\n",
        expect![[r#"
        $ cloudcore --config FILE
        cloudcore: FILE: the configuration has 2 mistakes:
          modules.cloudHub.nodeLimit: a whole number from 1 to 1000000 is expected, not "none"
          kedge.logFormat: text or json is expected, not "xml"
        [1]
    "#]],
    );
    check(
        "kubeAPIConfig: {kubeConfig: /nowhere/kubeconfig}\n",
        expect![[r#"
        $ cloudcore --config FILE
        cloudcore: FILE: kubeAPIConfig.kubeConfig: there is no file /nowhere/kubeconfig; name the kubeconfig of the cluster, or leave the key out inside a cluster
        [1]
    "#]],
    );
    check(
        "modules: [\n",
        expect![[r#"
        $ cloudcore --config FILE
        cloudcore: FILE: the configuration has 1 mistake:
          not valid YAML: error: line 1 column 10: unclosed bracket '['
         --> <input>:1:10
          |
        1 | modules: [
          |          ^ unclosed bracket '['
        [1]
    "#]],
    );
    std::fs::remove_file(&file).unwrap();
    expect![[r#"
        $ cloudcore --config FILE
        cloudcore: read FILE: No such file or directory (os error 2); `cloudcore --minconfig` prints a configuration to begin with, and --config names another file
        [1]
    "#]].assert_eq(&transcript(&["--config", &path]).replace(&path, "FILE"));
}

/// Lines of the log begin with their time.
fn without_times(log: &str) -> String {
    log.lines()
        .map(|line| line.split_once("Z ").map_or(line, |(_, rest)| rest).trim_start())
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn a_way_to_the_api_that_leads_nowhere_is_told() {
    let directory = Directory::new("cli-api");
    let file = directory.0.join("cloudcore.yaml");
    let path = file.display().to_string();
    let check = |text: &str, args: &[&str], expect: Expect| {
        std::fs::write(&file, text).unwrap();
        let (code, _, log) = cloudcore(&[&["--config", &path], args].concat());
        let log = without_times(&log).replace(&path, "FILE");
        expect.assert_eq(&format!("{log}\n[{code}]\n"));
    };
    check(
        "kubeAPIConfig: {master: 'https://192.0.2.1:6443'}\nmodules: {router: {enable: true}}\n",
        &["--logtostderr=true", "-v", "2"],
        expect![[r#"
        INFO kedge_cloudcore::cli: CloudCore starts version="KubeEdge v1.23.1-kedge.0.1.0" config=FILE
        WARN kedge_cloudcore::cli: modules.router has no effect in kedge: these modules are not part of this version
        WARN kedge_cloudcore::cli: flags of klog other than -v have no effect in kedge: the log goes to standard error
        cloudcore: kubeAPIConfig.master alone has no credentials; name a kubeconfig in kubeAPIConfig.kubeConfig too: https://192.0.2.1:6443/: no certificate authority is given; only the kubeconfig's own authority is trusted
        [1]
    "#]],
    );
    check(
        "{}",
        &["--vmodule", "a=4"],
        expect![[r#"
            INFO kedge_cloudcore::cli: CloudCore starts version="KubeEdge v1.23.1-kedge.0.1.0" config=FILE
            WARN kedge_cloudcore::cli: flags of klog other than -v have no effect in kedge: the log goes to standard error
            cloudcore: kubeAPIConfig.kubeConfig and kubeAPIConfig.master are empty, which is right inside a cluster only: this process does not run in a Kubernetes pod with a service account: failed to read an incluster environment variable: environment variable not found; give a kubeconfig instead
            [1]
        "#]],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_master_replaces_the_address_of_the_kubeconfig() {
    let world = World::start().await;
    let directory = Directory::new("cli-master");
    let (kubeconfig, file) = (directory.0.join("kubeconfig"), directory.0.join("cloudcore.yaml"));
    // Nobody listens there; the credentials are right.
    let elsewhere = world
        .kubeconfig
        .replace(world.cluster.url().trim_end_matches('/'), "https://127.0.0.1:1");
    assert_ne!(elsewhere, world.kubeconfig);
    std::fs::write(&kubeconfig, elsewhere).unwrap();
    let mut told = Vec::new();
    for master in [world.cluster.url(), "not an address", "http://192.0.2.1:8080"] {
        let text = format!(
            "kubeAPIConfig: {{kubeConfig: {}, master: '{master}'}}\nmodules: {{cloudHub: {{tlsCAFile: '', tlsCAKeyFile: ''}}}}\n",
            kubeconfig.display()
        );
        std::fs::write(&file, text).unwrap();
        let path = file.display().to_string();
        let run = tokio::task::spawn_blocking(move || cloudcore(&["token", "--config", &path]));
        told.push(run.await.unwrap().2);
    }
    expect![[r#"
        cloudcore: there is no secret kubeedge/casecret; start CloudCore once, which makes it
        cloudcore: kubeAPIConfig.kubeConfig with kubeAPIConfig.master: not an address is not an address such as https://10.0.0.1:6443: invalid uri character
        cloudcore: kubeAPIConfig.kubeConfig with kubeAPIConfig.master: http://192.0.2.1:8080/: plain http is taken from this machine only
    "#]].assert_eq(&told.concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_printed_and_nothing_else() {
    let world = World::start().await;
    let directory = Directory::new("cli-token");
    let (kubeconfig, file) = (directory.0.join("kubeconfig"), directory.0.join("cloudcore.yaml"));
    std::fs::write(&kubeconfig, &world.kubeconfig).unwrap();
    let text = format!(
        "kubeAPIConfig: {{kubeConfig: {}}}\nmodules: {{cloudHub: {{tlsCAFile: '', tlsCAKeyFile: ''}}}}\n",
        kubeconfig.display()
    );
    std::fs::write(&file, text).unwrap();
    let path = file.display().to_string();
    let run = async |args: &[&str]| {
        let args: Vec<String> = ["token", "--config", &path]
            .iter()
            .chain(args)
            .map(|arg| (*arg).to_owned())
            .collect();
        tokio::task::spawn_blocking(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            cloudcore(&args)
        })
        .await
        .unwrap()
    };
    let mut told = vec![run(&[]).await.2];
    let authority = world.authority().await;
    told.push(run(&[]).await.2);
    let token = shared::current(&world.cluster, &authority, Duration::from_secs(3600))
        .await
        .unwrap();
    assert_eq!(run(&[]).await, (0, format!("{}\n", token.text()), String::new()));

    let (code, printed, log) = run(&["--node", "gate-7", "--ttl", "30m"]).await;
    assert_eq!((code, log.as_str()), (0, ""));
    let token = JoinToken::parse(&printed).unwrap();
    token.check_authority(authority.certificate()).unwrap();
    let now = UnixTime::now();
    let claims = JoinToken::verify_bearer(token.bearer(), &authority, now).unwrap();
    assert!(matches!(claims, JoinClaims::OneTime { node, .. } if node.as_str() == "gate-7"));
    let left = token.expires().unwrap().as_secs() - now.as_secs();
    assert!((1790..=1800).contains(&left), "{left}");

    for args in [
        &["--node", "Gate 7"][..],
        &["--node", "gate-7", "--ttl", "soon"],
        &["--node", "gate-7", "--ttl", "1000h"],
        &["--ttl", "1h"],
    ] {
        told.push(run(args).await.2);
    }
    expect![[r#"
        cloudcore: there is no secret kubeedge/casecret; start CloudCore once, which makes it
        cloudcore: there is no secret kubeedge/tokensecret; is CloudCore running?
        cloudcore: --node: node name "Gate 7" is not valid: a node name has 1 to 253 of a-z, 0-9, '-' and '.', and begins and ends with a letter or digit
        cloudcore: --ttl: a time such as 30m or 24h is expected, not "soon"
        cloudcore: --ttl: 1000h is not between 1m and 720h
        error: the following required arguments were not provided:
          --node <NAME>

        Usage: cloudcore token --node <NAME> --config <FILE> --ttl <TIME>

        For more information, try '--help'.
    "#]].assert_eq(&told.concat());
}
