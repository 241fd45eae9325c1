//! A node comes with a past: what another cloud, or this one, knew about it.

use crate::story::check;
use expect_test::expect;
use kedge_link::Peer;

#[test]
fn from_recorded_knowledge_everything_is_sent_and_what_must_go_is_deleted() {
    check(
        Peer::Official,
        "assume web a 5
         assume gone b 3
         want web a 5
         want new c 6
         complete
         ack 1
         ack 2
         ack 3
         held",
        expect![[r#"
            > assume web a 5
            > assume gone b 3
            > want web a 5
            #1: update default/pod/web a@5
            > want new c 6
            #2: insert default/pod/new c@6
            > complete
            #3: delete default/pod/gone b@
            > ack 1
            event: default/pod/web held a@5
            > ack 2
            event: default/pod/new held c@6
            > ack 3
            event: default/pod/gone gone b
            > held
            held: default/pod/new c@6
            held: default/pod/web a@5
        "#]],
    );
}

#[test]
fn each_old_pod_of_a_name_is_gone_before_the_new_one_comes() {
    check(
        Peer::Official,
        "assume web a 5
         assume web c 9
         assume web b 7
         want web d 12
         complete
         ack 1
         ack 2
         ack 3
         ack 4
         held",
        expect![[r#"
            > assume web a 5
            > assume web c 9
            > assume web b 7
            > want web d 12
            #1: delete default/pod/web a@
            > complete
            > ack 1
            event: default/pod/web gone a
            #2: delete default/pod/web b@
            > ack 2
            event: default/pod/web gone b
            #3: delete default/pod/web c@
            > ack 3
            event: default/pod/web gone c
            #4: insert default/pod/web d@12
            > ack 4
            event: default/pod/web held d@12
            > held
            held: default/pod/web d@12
        "#]],
    );
}

#[test]
fn a_stale_record_beside_the_right_one_costs_one_delete() {
    check(
        Peer::Official,
        "assume web a 5
         assume web b 7
         want web b 8
         complete
         ack 1
         ack 2
         held",
        expect![[r#"
            > assume web a 5
            > assume web b 7
            > want web b 8
            #1: delete default/pod/web a@
            > complete
            > ack 1
            event: default/pod/web gone a
            #2: update default/pod/web b@8
            > ack 2
            event: default/pod/web held b@8
            > held
            held: default/pod/web b@8
        "#]],
    );
}

#[test]
fn what_is_no_pod_is_replaced_under_its_name_and_all_stale_records_go() {
    check(
        Peer::Official,
        "assume-configmap app a 5
         assume-configmap app b 7
         assume-configmap app c 9
         want-configmap app c 9
         assume-configmap gone x 2
         assume-configmap gone y 3
         complete
         reached 20
         ack 1
         want-configmap other z 12
         ack 2
         ack 3",
        expect![[r#"
            > assume-configmap app a 5
            > assume-configmap app b 7
            > assume-configmap app c 9
            > want-configmap app c 9
            #1: update default/configmap/app c@9
            > assume-configmap gone x 2
            > assume-configmap gone y 3
            > complete
            #2: delete default/configmap/gone y@
            > reached 20
            > ack 1
            event: default/configmap/app held c@9
            event: default/configmap/app gone a
            event: default/configmap/app gone b
            > want-configmap other z 12
            #3: insert default/configmap/other z@12
            > ack 2
            event: default/configmap/gone gone y
            event: default/configmap/gone gone x
            > ack 3
            event: default/configmap/other held z@12
        "#]],
    );
}

#[test]
fn a_record_that_is_read_late_is_older_than_what_was_sent() {
    check(
        Peer::Official,
        "want web b 9
         complete
         assume web a 3
         after 3
         ack 2
         ack 1
         want web b 10
         ack 3
         held",
        expect![[r#"
            > want web b 9
            #1: insert default/pod/web b@9
            > complete
            > assume web a 3
            > after 3
            #2: delete default/pod/web a@
            > ack 2
            event: default/pod/web gone a
            #3: update default/pod/web b@9
            > ack 1
            > want web b 10
            > ack 3
            event: default/pod/web held b@9
            #4: update default/pod/web b@10
            > held
            held: default/pod/web b@9
        "#]],
    );
}

#[test]
fn a_record_that_says_never_acknowledged_still_counts() {
    check(
        Peer::Official,
        "assume web a 0
         complete
         ack 1",
        expect![[r#"
            > assume web a 0
            > complete
            #1: delete default/pod/web a@
            > ack 1
            event: default/pod/web gone a
        "#]],
    );
}

#[test]
fn the_digest_of_a_node_of_ours_replaces_what_was_assumed() {
    check(
        Peer::Kedge,
        "assume web a 5
         assume gone b 3
         want web a 5
         complete
         resume
         ack 1
         held",
        expect![[r#"
            > assume web a 5
            > assume gone b 3
            > want web a 5
            > complete
            > resume
            #1: insert default/pod/web a@5
            > ack 1
            event: default/pod/web held a@5
            resumed
            > held
            held: default/pod/web a@5
        "#]],
    );
}

#[test]
fn a_late_digest_gives_way_only_to_what_was_put_there_since() {
    check(
        Peer::Kedge,
        "assume stale old 3
         assume same b 4
         assume gone c 2
         want web a 5
         complete
         after 5
         ack 1
         resume stale=new@9 same=b@4 web=a@1
         reached 20
         ack 2
         ack 3
         ack 4
         ack 5
         held",
        expect![[r#"
            > assume stale old 3
            > assume same b 4
            > assume gone c 2
            > want web a 5
            > complete
            > after 5
            #1: insert default/pod/web a@5
            #2: delete default/pod/gone c@
            #3: delete default/pod/same b@
            > ack 1
            event: default/pod/web held a@5
            #4: delete default/pod/stale old@
            > resume stale=new@9 same=b@4 web=a@1
            > reached 20
            > ack 2
            > ack 3
            event: default/pod/same gone b
            > ack 4
            #5: delete default/pod/stale new@
            > ack 5
            event: default/pod/stale gone new
            resumed
            > held
            held: default/pod/web a@5
        "#]],
    );
}

#[test]
fn a_node_installed_anew_gets_everything() {
    // Of an official one only its past is known.
    check(
        Peer::Official,
        "want web a 5
         want db b 6
         complete",
        expect![[r#"
            > want web a 5
            #1: insert default/pod/web a@5
            > want db b 6
            #2: insert default/pod/db b@6
            > complete
        "#]],
    );
    check(
        Peer::Kedge,
        "assume web a 5
         assume db b 6
         resume
         want web a 5
         want db b 6
         complete",
        expect![[r#"
            > assume web a 5
            > assume db b 6
            > resume
            > want web a 5
            #1: insert default/pod/web a@5
            > want db b 6
            #2: insert default/pod/db b@6
            > complete
        "#]],
    );
}

#[test]
fn a_cloud_whose_watch_lags_undoes_nothing() {
    // `fresh` was placed by another cloud and our watch has not seen it yet.
    check(
        Peer::Kedge,
        "reached 4
         want web a 5
         complete
         resume web=a@5 fresh=x@9
         after 9
         want fresh x 9
         after 20
         held",
        expect![[r#"
            > reached 4
            > want web a 5
            > complete
            > resume web=a@5 fresh=x@9
            > after 9
            > want fresh x 9
            resumed
            > after 20
            > held
            held: default/pod/fresh x@9
            held: default/pod/web a@5
        "#]],
    );
    // Our watch has passed its version and does not know it: it was deleted.
    check(
        Peer::Kedge,
        "reached 4
         want web a 5
         complete
         resume web=a@5 gone=x@9
         reached 8
         reached 9
         ack 1",
        expect![[r#"
            > reached 4
            > want web a 5
            > complete
            > resume web=a@5 gone=x@9
            > reached 8
            > reached 9
            #1: delete default/pod/gone x@
            > ack 1
            event: default/pod/gone gone x
            resumed
        "#]],
    );
    // Any later pod on this node says as much.
    check(
        Peer::Kedge,
        "reached 4
         want web a 5
         complete
         resume web=a@5 gone=x@9
         want db b 10
         ack 2",
        expect![[r#"
            > reached 4
            > want web a 5
            > complete
            > resume web=a@5 gone=x@9
            > want db b 10
            #1: insert default/pod/db b@10
            #2: delete default/pod/gone x@
            > ack 2
            event: default/pod/gone gone x
            resumed
        "#]],
    );
    // Patience has an end.
    check(
        Peer::Kedge,
        "reached 4
         want web a 5
         complete
         resume web=a@5 gone=x@9
         after 9
         after 1",
        expect![[r#"
            > reached 4
            > want web a 5
            > complete
            > resume web=a@5 gone=x@9
            > after 9
            > after 1
            #1: delete default/pod/gone x@
        "#]],
    );
}

#[test]
fn a_cloud_whose_watch_lags_does_not_bring_back_the_dead() {
    check(
        Peer::Kedge,
        "reached 4
         want web old 5
         complete
         resume web=new@9
         after 9
         want web new 9
         held",
        expect![[r#"
            > reached 4
            > want web old 5
            > complete
            > resume web=new@9
            > after 9
            > want web new 9
            resumed
            > held
            held: default/pod/web new@9
        "#]],
    );
    check(
        Peer::Official,
        "reached 4
         assume web a 9
         want web a 5
         complete
         after 9
         want web a 9",
        expect![[r#"
            > reached 4
            > assume web a 9
            > want web a 5
            > complete
            > after 9
            > want web a 9
            #1: update default/pod/web a@9
        "#]],
    );
}
