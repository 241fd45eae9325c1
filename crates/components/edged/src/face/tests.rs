use super::*;
use crate::stats::tests::{disks, usage};
use expect_test::expect;

/// Comments differ in nothing but words.
fn samples(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with("# HELP"));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn resource_metrics() {
    expect![[r##"
        # TYPE container_cpu_usage_seconds_total counter
        container_cpu_usage_seconds_total{container="main",namespace="default",pod="web"} 2.5 1767225600000
        # TYPE container_memory_working_set_bytes gauge
        container_memory_working_set_bytes{container="main",namespace="default",pod="web"} 39000 1767225600000
        # TYPE container_start_time_seconds gauge
        container_start_time_seconds{container="main",namespace="default",pod="web"} 1767225550
        # TYPE node_cpu_usage_seconds_total counter
        node_cpu_usage_seconds_total 9 1767225600000
        # TYPE node_memory_working_set_bytes gauge
        node_memory_working_set_bytes 999000 1767225600000
        # TYPE pod_cpu_usage_seconds_total counter
        pod_cpu_usage_seconds_total{namespace="default",pod="web"} 3 1767225600000
        # TYPE pod_memory_working_set_bytes gauge
        pod_memory_working_set_bytes{namespace="default",pod="web"} 49000 1767225600000
        # TYPE resource_scrape_error gauge
        resource_scrape_error 0
        # TYPE scrape_error gauge
        scrape_error 0
    "##]]
    .assert_eq(&samples(&resource::print(&usage())));
}

#[test]
fn cadvisor_metrics_of_a_container() {
    let machine = cadvisor::Machine {
        cpus: 2,
        memory_bytes: 2_000_000,
        swap_bytes: 0,
        kernel: "6.1",
        os: "Debian",
        device: "/dev/vda1",
    };
    let text = samples(&cadvisor::print(&machine, &usage(), &disks()));
    let of = |wanted: &str| -> String {
        let lines = text.lines().filter(|line| line.contains(wanted));
        lines.map(|line| format!("{line}\n")).collect()
    };
    expect![[r#"
        container_cpu_usage_seconds_total{container="main",cpu="total",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 2.5 1767225600000
        container_cpu_user_seconds_total{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 1.25 1767225600000
        container_cpu_system_seconds_total{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 0.625 1767225600000
        container_cpu_cfs_throttled_seconds_total{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 0 1767225600000
        container_cpu_cfs_periods_total{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 0 1767225600000
        container_cpu_cfs_throttled_periods_total{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 0 1767225600000
        container_memory_usage_bytes{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 40000 1767225600000
        container_memory_working_set_bytes{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 39000 1767225600000
        container_memory_rss{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 500 1767225600000
        container_memory_cache{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 0 1767225600000
        container_memory_mapped_file{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 0 1767225600000
        container_memory_failcnt{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 0 1767225600000
        container_oom_events_total{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 0 1767225600000
        container_spec_memory_limit_bytes{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 100000 1767225600000
        container_memory_failures_total{container="main",failure_type="pgfault",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web",scope="hierarchy"} 7 1767225600000
        container_memory_failures_total{container="main",failure_type="pgmajfault",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web",scope="hierarchy"} 1 1767225600000
        container_fs_usage_bytes{container="main",device="/dev/vda1",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 300 1767225600000
        container_fs_limit_bytes{container="main",device="/dev/vda1",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 1000000 1767225600000
        container_processes{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 2 1767225600000
        container_start_time_seconds{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 1767225550 1767225600000
        container_last_seen{container="main",id="/kubepods/podu1/c1",image="app:1",name="c1",namespace="default",pod="web"} 1767225600 1767225600000
    "#]].assert_eq(&of("container=\"main\""));
    expect![[r##"
        # TYPE container_network_receive_bytes_total counter
        container_network_receive_bytes_total{container="",id="/",image="",interface="eth0",name="",namespace="",pod=""} 100 1767225600000
        container_network_receive_bytes_total{container="",id="/kubepods/podu1",image="",interface="eth0",name="",namespace="default",pod="web"} 100 1767225600000
    "##]].assert_eq(&of("_network_receive_bytes"));
    expect![[r#"
        container_cpu_usage_seconds_total{container="",cpu="total",id="/",image="",name="",namespace="",pod=""} 9 1767225600000
        container_cpu_user_seconds_total{container="",id="/",image="",name="",namespace="",pod=""} 4.5 1767225600000
        container_cpu_system_seconds_total{container="",id="/",image="",name="",namespace="",pod=""} 2.25 1767225600000
        container_cpu_cfs_throttled_seconds_total{container="",id="/",image="",name="",namespace="",pod=""} 0 1767225600000
        container_cpu_cfs_periods_total{container="",id="/",image="",name="",namespace="",pod=""} 0 1767225600000
        container_cpu_cfs_throttled_periods_total{container="",id="/",image="",name="",namespace="",pod=""} 0 1767225600000
        container_memory_usage_bytes{container="",id="/",image="",name="",namespace="",pod=""} 1000000 1767225600000
        container_memory_working_set_bytes{container="",id="/",image="",name="",namespace="",pod=""} 999000 1767225600000
        container_memory_rss{container="",id="/",image="",name="",namespace="",pod=""} 500 1767225600000
        container_memory_cache{container="",id="/",image="",name="",namespace="",pod=""} 0 1767225600000
        container_memory_mapped_file{container="",id="/",image="",name="",namespace="",pod=""} 0 1767225600000
        container_memory_failcnt{container="",id="/",image="",name="",namespace="",pod=""} 0 1767225600000
        container_oom_events_total{container="",id="/",image="",name="",namespace="",pod=""} 0 1767225600000
        container_spec_memory_limit_bytes{container="",id="/",image="",name="",namespace="",pod=""} 0 1767225600000
        container_memory_failures_total{container="",failure_type="pgfault",id="/",image="",name="",namespace="",pod="",scope="hierarchy"} 7 1767225600000
        container_memory_failures_total{container="",failure_type="pgmajfault",id="/",image="",name="",namespace="",pod="",scope="hierarchy"} 1 1767225600000
        container_network_receive_bytes_total{container="",id="/",image="",interface="eth0",name="",namespace="",pod=""} 100 1767225600000
        container_network_receive_packets_total{container="",id="/",image="",interface="eth0",name="",namespace="",pod=""} 0 1767225600000
        container_network_receive_errors_total{container="",id="/",image="",interface="eth0",name="",namespace="",pod=""} 0 1767225600000
        container_network_receive_packets_dropped_total{container="",id="/",image="",interface="eth0",name="",namespace="",pod=""} 0 1767225600000
        container_network_transmit_bytes_total{container="",id="/",image="",interface="eth0",name="",namespace="",pod=""} 200 1767225600000
        container_network_transmit_packets_total{container="",id="/",image="",interface="eth0",name="",namespace="",pod=""} 0 1767225600000
        container_network_transmit_errors_total{container="",id="/",image="",interface="eth0",name="",namespace="",pod=""} 0 1767225600000
        container_network_transmit_packets_dropped_total{container="",id="/",image="",interface="eth0",name="",namespace="",pod=""} 0 1767225600000
        container_fs_usage_bytes{container="",device="/dev/vda1",id="/",image="",name="",namespace="",pod=""} 400000 1767225600000
        container_fs_limit_bytes{container="",device="/dev/vda1",id="/",image="",name="",namespace="",pod=""} 1000000 1767225600000
        container_fs_inodes_total{container="",device="/dev/vda1",id="/",image="",name="",namespace="",pod=""} 1000 1767225600000
        container_fs_inodes_free{container="",device="/dev/vda1",id="/",image="",name="",namespace="",pod=""} 900 1767225600000
        container_last_seen{container="",id="/",image="",name="",namespace="",pod=""} 1767225600 1767225600000
    "#]].assert_eq(&of("id=\"/\""));
    expect![[r#"
        # TYPE machine_cpu_cores gauge
        machine_cpu_cores 2
        # TYPE machine_memory_bytes gauge
        machine_memory_bytes 2000000
        # TYPE machine_swap_bytes gauge
        machine_swap_bytes 0
    "#]]
    .assert_eq(&of("machine_"));
}

#[test]
fn what_commands_are_for_is_refused_with_the_way_to_go() {
    for path in [
        "/exec/default/web/main",
        "/run/default/web/main",
        "/attach/default/web/main",
        "/cri/exec/x",
        "/portForward/default/web",
        "/checkpoint/default/web/main",
        "/debug/pprof/profile",
        "/debug/flags/v",
        "/logs",
        "/logs/messages",
        "//exec/default/web/main",
    ] {
        let answer = refused(path).unwrap();
        let LogAnswer::Err(why) = pieces(answer) else {
            panic!("{path} is answered")
        };
        assert!(why.contains("tunnel"), "{path}: {why}");
    }
    assert!(refused("/containerLogs/default/exec/run").is_none());
    assert!(refused("/metrics").is_none());
}

#[tokio::test]
async fn the_tunnel_gets_bytes_or_a_sentence() {
    let mut bytes = pieces(Answer::whole(200, JSON, "{}")).unwrap();
    assert_eq!(bytes.recv().await.unwrap(), "{}");
    assert_eq!(bytes.recv().await, None);
    assert_eq!(pieces(Answer::text(404, "none\n")).unwrap_err(), "none");
}

#[test]
fn pods_are_below_the_operators_root() {
    let roots = |root: &str| Settings::roots_below(root).join(" ");
    assert_eq!(roots(""), "/kubepods /kubepods.slice");
    assert_eq!(roots("/"), "/kubepods /kubepods.slice");
    assert_eq!(
        roots("/a/b"),
        "/a/b/kubepods /a.slice/a-b.slice/a-b-kubepods.slice"
    );
}
