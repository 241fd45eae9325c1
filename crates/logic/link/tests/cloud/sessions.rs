//! The ordinary life of a session.

use crate::story::check;
use expect_test::expect;
use kedge_link::Peer;

#[test]
fn an_object_is_repeated_until_it_is_acknowledged() {
    check(
        Peer::Official,
        "want web a 1
         complete
         after 3
         after 5
         ack 1
         after 20",
        expect![[r#"
            > want web a 1
            #1: insert default/pod/web a@1
            > complete
            > after 3
            #1 again: insert default/pod/web a@1
            > after 5
            #1 again: insert default/pod/web a@1
            > ack 1
            event: default/pod/web held a@1
            > after 20
        "#]],
    );
}

#[test]
fn only_the_latest_version_is_sent() {
    check(
        Peer::Official,
        "complete
         want web a 1
         want web a 2
         want web a 3
         ack 1
         ack 2",
        expect![[r#"
            > complete
            > want web a 1
            #1: insert default/pod/web a@1
            > want web a 2
            > want web a 3
            > ack 1
            event: default/pod/web held a@1
            #2: update default/pod/web a@3
            > ack 2
            event: default/pod/web held a@3
        "#]],
    );
}

#[test]
fn a_late_acknowledgement_of_an_older_version_still_counts_for_that_version() {
    check(
        Peer::Official,
        "complete
         want web a 1
         want web a 2
         after 3
         ack 1
         held
         ack 2
         held",
        expect![[r#"
            > complete
            > want web a 1
            #1: insert default/pod/web a@1
            > want web a 2
            > after 3
            #2: update default/pod/web a@2
            > ack 1
            event: default/pod/web held a@1
            > held
            held: default/pod/web a@1
            > ack 2
            event: default/pod/web held a@2
            > held
            held: default/pod/web a@2
        "#]],
    );
}

#[test]
fn a_new_uid_waits_for_the_delete_of_the_old_one() {
    check(
        Peer::Official,
        "complete
         want web a 1
         ack 1
         want web b 5
         after 3
         ack 2
         ack 3",
        expect![[r#"
            > complete
            > want web a 1
            #1: insert default/pod/web a@1
            > ack 1
            event: default/pod/web held a@1
            > want web b 5
            #2: delete default/pod/web a@
            > after 3
            #2 again: delete default/pod/web a@
            > ack 2
            event: default/pod/web gone a
            #3: insert default/pod/web b@5
            > ack 3
            event: default/pod/web held b@5
        "#]],
    );
}

#[test]
fn a_new_uid_waits_even_when_the_old_one_was_never_acknowledged() {
    check(
        Peer::Official,
        "complete
         want web a 1
         want web b 5
         after 3
         ack 1
         ack 2",
        expect![[r#"
            > complete
            > want web a 1
            #1: insert default/pod/web a@1
            > want web b 5
            > after 3
            #2: delete default/pod/web a@
            > ack 1
            event: default/pod/web held a@1
            > ack 2
            event: default/pod/web gone a
            #3: insert default/pod/web b@5
        "#]],
    );
}

#[test]
fn wanted_again_while_its_delete_is_under_way() {
    check(
        Peer::Official,
        "complete
         want web a 1
         ack 1
         drop web
         want web a 1
         after 3
         ack 2
         ack 3
         held",
        expect![[r#"
            > complete
            > want web a 1
            #1: insert default/pod/web a@1
            > ack 1
            event: default/pod/web held a@1
            > drop web
            #2: delete default/pod/web a@
            > want web a 1
            > after 3
            #3: update default/pod/web a@1
            > ack 2
            > ack 3
            event: default/pod/web held a@1
            > held
            held: default/pod/web a@1
        "#]],
    );
}

#[test]
fn wanted_again_while_its_delete_is_under_way_and_the_first_acknowledgement_comes_late() {
    check(
        Peer::Official,
        "complete
         want web a 1
         drop web
         after 3
         want web a 1
         ack 1
         ack 2
         ack 3
         held",
        expect![[r#"
            > complete
            > want web a 1
            #1: insert default/pod/web a@1
            > drop web
            > after 3
            #2: delete default/pod/web a@
            > want web a 1
            > ack 1
            event: default/pod/web held a@1
            > ack 2
            event: default/pod/web gone a
            #3: insert default/pod/web a@1
            > ack 3
            event: default/pod/web held a@1
            > held
            held: default/pod/web a@1
        "#]],
    );
}

#[test]
fn a_refusal_is_retried_with_growing_delay_and_never_forgotten() {
    check(
        Peer::Official,
        "complete
         want web a 1
         refuse 1
         after 2
         after 3
         refuse 1
         after 6
         after 5
         ack 1",
        expect![[r#"
            > complete
            > want web a 1
            #1: insert default/pod/web a@1
            > refuse 1
            > after 2
            > after 3
            #1 again: insert default/pod/web a@1
            > refuse 1
            > after 6
            > after 5
            #1 again: insert default/pod/web a@1
            > ack 1
            event: default/pod/web held a@1
        "#]],
    );
}

#[test]
fn the_window_is_kept_and_changes_go_before_the_first_set() {
    check(
        Peer::Official,
        "want a u1 1
         want b u2 1
         want c u3 1
         want d u4 1
         want e u5 1
         complete
         want new u6 9
         ack 1
         ack 2
         ack 3",
        expect![[r#"
            > want a u1 1
            #1: insert default/pod/a u1@1
            > want b u2 1
            #2: insert default/pod/b u2@1
            > want c u3 1
            #3: insert default/pod/c u3@1
            > want d u4 1
            > want e u5 1
            > complete
            > want new u6 9
            > ack 1
            event: default/pod/a held u1@1
            #4: insert default/pod/new u6@9
            > ack 2
            event: default/pod/b held u2@1
            #5: insert default/pod/d u4@1
            > ack 3
            event: default/pod/c held u3@1
            #6: insert default/pod/e u5@1
        "#]],
    );
}

#[test]
fn a_digest_leaves_only_the_difference() {
    check(
        Peer::Kedge,
        "want same a 5
         want newer b 7
         want missing c 1
         want ahead d 3
         resume same=a@5 newer=b@6 ahead=d@4 extra=x@2 other=old@1
         want other new 8
         complete
         ack 3
         ack 2
         ack 1
         ack 4
         ack 5
         held",
        expect![[r#"
            > want same a 5
            > want newer b 7
            > want missing c 1
            > want ahead d 3
            > resume same=a@5 newer=b@6 ahead=d@4 extra=x@2 other=old@1
            #1: update default/pod/newer b@7
            #2: insert default/pod/missing c@1
            > want other new 8
            #3: delete default/pod/other old@
            > complete
            > ack 3
            event: default/pod/other gone old
            #4: insert default/pod/other new@8
            > ack 2
            event: default/pod/missing held c@1
            #5: delete default/pod/extra x@
            > ack 1
            event: default/pod/newer held b@7
            > ack 4
            event: default/pod/other held new@8
            > ack 5
            event: default/pod/extra gone x
            resumed
            > held
            held: default/pod/ahead d@4
            held: default/pod/missing c@1
            held: default/pod/newer b@7
            held: default/pod/other new@8
            held: default/pod/same a@5
        "#]],
    );
}

#[test]
fn without_a_digest_the_full_set_is_sent_after_a_while() {
    check(
        Peer::Kedge,
        "want web a 5
         complete
         ask lease edge-1
         answer 1
         after 4
         after 1",
        expect![[r#"
            > want web a 5
            > complete
            > ask lease edge-1
            event: request default/lease/edge-1 under heard-1
            > answer 1
            #1: response default/lease/edge-1 to heard-1
            > after 4
            > after 1
            #2: insert default/pod/web a@5
        "#]],
    );
}

#[test]
fn an_official_node_that_was_away_gets_its_deletes() {
    check(
        Peer::Official,
        "assume web a 5
         assume gone b 3
         want web a 5
         complete
         ack 1
         ack 2
         held",
        expect![[r#"
            > assume web a 5
            > assume gone b 3
            > want web a 5
            #1: update default/pod/web a@5
            > complete
            #2: delete default/pod/gone b@
            > ack 1
            event: default/pod/web held a@5
            > ack 2
            event: default/pod/gone gone b
            > held
            held: default/pod/web a@5
        "#]],
    );
}

#[test]
fn answers_leave_by_rank_and_before_objects() {
    check(
        Peer::Kedge,
        "ask configmap app
         ask podpatch web
         ask lease edge-1
         answer 1 2 3
         answer 1 9",
        expect![[r#"
            > ask configmap app
            event: request default/configmap/app under heard-1
            > ask podpatch web
            event: request default/podpatch/web under heard-2
            > ask lease edge-1
            event: request default/lease/edge-1 under heard-3
            > answer 1 2 3
            #1: response default/lease/edge-1 to heard-3
            #2: response default/podpatch/web to heard-2
            #3: response default/configmap/app to heard-1
            > answer 1 9
        "#]],
    );
}

#[test]
fn a_flood_of_requests_ends_the_session() {
    check(
        Peer::Official,
        "ask configmap a
         ask configmap b
         ask configmap c
         ask configmap d
         ask configmap e",
        expect![[r#"
            > ask configmap a
            event: request default/configmap/a under heard-1
            > ask configmap b
            event: request default/configmap/b under heard-2
            > ask configmap c
            event: request default/configmap/c under heard-3
            > ask configmap d
            event: close, node edge-1 has more than 3 requests open
            > ask configmap e
        "#]],
    );
}

#[test]
fn old_requests_are_forgotten() {
    check(
        Peer::Official,
        "ask configmap a
         ask configmap b
         after 29
         keepalive
         after 29
         keepalive
         after 29
         ask configmap c
         ask configmap d
         ask configmap e
         answer 1",
        expect![[r#"
            > ask configmap a
            event: request default/configmap/a under heard-1
            > ask configmap b
            event: request default/configmap/b under heard-2
            > after 29
            > keepalive
            > after 29
            > keepalive
            > after 29
            > ask configmap c
            event: request default/configmap/c under heard-5
            > ask configmap d
            event: request default/configmap/d under heard-6
            > ask configmap e
            event: request default/configmap/e under heard-7
            > answer 1
        "#]],
    );
}

#[test]
fn a_silent_node_and_a_broken_digest_end_the_session() {
    check(
        Peer::Official,
        "after 29
         keepalive
         after 29
         after 1
         keepalive",
        expect![[r#"
            > after 29
            > keepalive
            > after 29
            > after 1
            event: close, node edge-1 was silent for 30 s
            > keepalive
        "#]],
    );
    check(
        Peer::Kedge,
        "resume-broken",
        expect![[r#"
            > resume-broken
            event: close, the digest of node edge-1 is not usable: invalid type: string "no digest", expected struct Digest at line 1 column 11
        "#]],
    );
    check(
        Peer::Kedge,
        "resume\n resume",
        expect![[r#"
        > resume
        > resume
        event: close, node edge-1 sent a second digest
    "#]],
    );
    check(
        Peer::Official,
        "resume",
        expect![[r#"
        > resume
        event: close, node edge-1 sent a digest without having offered it
    "#]],
    );
}

#[test]
fn the_end_of_a_resumption_is_told_once_and_whatever_changes_meanwhile() {
    // What was desired at first is acknowledged, although newer versions wait; what is refused is not there.
    check(
        Peer::Kedge,
        "want web a 1
         want db b 1
         resume gone=x@1
         complete
         want web a 2
         ack 1
         refuse 2
         ack 3
         after 3
         ack 4
         after 20
         want web a 3
         ack 2",
        expect![[r#"
            > want web a 1
            > want db b 1
            > resume gone=x@1
            #1: insert default/pod/web a@1
            #2: insert default/pod/db b@1
            > complete
            #3: delete default/pod/gone x@
            > want web a 2
            > ack 1
            event: default/pod/web held a@1
            #4: update default/pod/web a@2
            > refuse 2
            > ack 3
            event: default/pod/gone gone x
            > after 3
            #4 again: update default/pod/web a@2
            > ack 4
            event: default/pod/web held a@2
            > after 20
            #2 again: insert default/pod/db b@1
            #2 again: insert default/pod/db b@1
            #2 again: insert default/pod/db b@1
            > want web a 3
            #5: update default/pod/web a@3
            > ack 2
            event: default/pod/db held b@1
            resumed
        "#]],
    );
    check(
        Peer::Kedge,
        "resume same=a@1
         want same a 1
         complete
         want other b 1",
        expect![[r#"
            > resume same=a@1
            > want same a 1
            > complete
            resumed
            > want other b 1
            #1: insert default/pod/other b@1
        "#]],
    );
    // Who has not said what it holds is not told.
    check(
        Peer::Kedge,
        "complete
         after 6",
        expect![[r#"
            > complete
            > after 6
        "#]],
    );
}
