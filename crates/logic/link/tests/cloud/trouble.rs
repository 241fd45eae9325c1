//! Nodes and clocks that misbehave.

use crate::story::check;
use expect_test::expect;
use kedge_link::Peer;

#[test]
fn heartbeats_are_answered_to_those_who_offered_them() {
    check(
        Peer::Kedge,
        "ping
         after 29
         ping
         after 29",
        expect![[r#"
            > ping
            sent: Pong
            > after 29
            > ping
            sent: Pong
            > after 29
        "#]],
    );
    check(
        Peer::Official,
        "ping",
        expect![[r#"
        > ping
        event: close, node edge-1 sent a heartbeat without having offered it
    "#]],
    );
    check(
        Peer::Kedge,
        "pong",
        expect![[r#"
        > pong
        event: close, node edge-1 answered a heartbeat that nobody sent
    "#]],
    );
}

#[test]
fn the_smaller_window_is_kept() {
    check(
        Peer::Kedge,
        "want a u1 1
         want b u2 1
         want c u3 1
         complete
         resume-with-window 1
         ack 1
         ack 2",
        expect![[r#"
            > want a u1 1
            > want b u2 1
            > want c u3 1
            > complete
            > resume-with-window 1
            #1: insert default/pod/a u1@1
            > ack 1
            event: default/pod/a held u1@1
            #2: insert default/pod/b u2@1
            > ack 2
            event: default/pod/b held u2@1
            #3: insert default/pod/c u3@1
        "#]],
    );
    check(
        Peer::Kedge,
        "resume-with-window 0",
        expect![[r#"
        > resume-with-window 0
        event: close, the digest of node edge-1 is not usable: a window of 0 takes nothing
    "#]],
    );
}

#[test]
fn a_node_that_acknowledges_nothing_costs_a_bounded_number_of_messages() {
    check(
        Peer::Official,
        "want a u1 1
         want b u2 1
         want c u3 1
         want d u4 1
         complete
         keepalive
         after 20
         ask lease edge-1
         answer 2
         keepalive
         after 20
         depth",
        expect![[r#"
            > want a u1 1
            #1: insert default/pod/a u1@1
            > want b u2 1
            #2: insert default/pod/b u2@1
            > want c u3 1
            #3: insert default/pod/c u3@1
            > want d u4 1
            > complete
            > keepalive
            > after 20
            #3 again: insert default/pod/c u3@1
            #2 again: insert default/pod/b u2@1
            #1 again: insert default/pod/a u1@1
            #3 again: insert default/pod/c u3@1
            #2 again: insert default/pod/b u2@1
            #1 again: insert default/pod/a u1@1
            #2 again: insert default/pod/b u2@1
            #3 again: insert default/pod/c u3@1
            #1 again: insert default/pod/a u1@1
            > ask lease edge-1
            event: request default/lease/edge-1 under heard-2
            > answer 2
            #4: response default/lease/edge-1 to heard-2
            > keepalive
            > after 20
            #2 again: insert default/pod/b u2@1
            #3 again: insert default/pod/c u3@1
            #1 again: insert default/pod/a u1@1
            #1 again: insert default/pod/a u1@1
            #3 again: insert default/pod/c u3@1
            #2 again: insert default/pod/b u2@1
            > depth
            in flight 3, waiting 1, retries 15, strays 0
        "#]],
    );
}

#[test]
fn an_acknowledgement_of_nothing_is_counted_and_changes_nothing() {
    check(
        Peer::Official,
        "want web a 1
         complete
         stray-ack
         ack 1
         ack 1
         refuse 1
         depth
         held",
        expect![[r#"
            > want web a 1
            #1: insert default/pod/web a@1
            > complete
            > stray-ack
            > ack 1
            event: default/pod/web held a@1
            > ack 1
            > refuse 1
            > depth
            in flight 0, waiting 0, retries 0, strays 3
            > held
            held: default/pod/web a@1
        "#]],
    );
}

#[test]
fn deleted_and_created_again_under_the_same_name() {
    check(
        Peer::Official,
        "complete
         want web a 1
         ack 1
         drop web
         want web b 4
         drop web
         want web c 6
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
            > want web b 4
            > drop web
            > want web c 6
            > ack 2
            event: default/pod/web gone a
            #3: insert default/pod/web c@6
            > ack 3
            event: default/pod/web held c@6
            > held
            held: default/pod/web c@6
        "#]],
    );
    // While the node was away.
    check(
        Peer::Official,
        "assume web a 1
         want web b 4
         complete
         ack 1
         ack 2",
        expect![[r#"
            > assume web a 1
            > want web b 4
            #1: delete default/pod/web a@
            > complete
            > ack 1
            event: default/pod/web gone a
            #2: insert default/pod/web b@4
            > ack 2
            event: default/pod/web held b@4
        "#]],
    );
}

#[test]
fn versions_that_are_no_numbers_are_compared_for_equality() {
    check(
        Peer::Kedge,
        "want same a v1-beta
         want other b v2
         want number c 7
         complete
         resume same=a@v1-beta other=b@v3 number=c@7x gone=d@what
         ack 1
         ack 2
         ack 3
         held",
        expect![[r#"
            > want same a v1-beta
            > want other b v2
            > want number c 7
            > complete
            > resume same=a@v1-beta other=b@v3 number=c@7x gone=d@what
            #1: update default/pod/other b@v2
            #2: update default/pod/number c@7
            #3: delete default/pod/gone d@
            > ack 1
            event: default/pod/other held b@v2
            > ack 2
            event: default/pod/number held c@7
            > ack 3
            event: default/pod/gone gone d
            resumed
            > held
            held: default/pod/number c@7
            held: default/pod/other b@v2
            held: default/pod/same a@v1-beta
        "#]],
    );
}

#[test]
fn a_clock_that_leaps_ends_no_session() {
    check(
        Peer::Kedge,
        "resume
         complete
         want web a 1
         ack 1
         after 10
         leap 3600
         ping
         after 29
         after 1",
        expect![[r#"
            > resume
            > complete
            resumed
            > want web a 1
            #1: insert default/pod/web a@1
            > ack 1
            event: default/pod/web held a@1
            > after 10
            > leap 3600
            > ping
            sent: Pong
            > after 29
            > after 1
            event: close, node edge-1 was silent for 30 s
        "#]],
    );
}

#[test]
fn a_clock_set_back_stops_no_timer() {
    check(
        Peer::Official,
        "complete
         want web a 1
         after 1
         set-back 3600
         after 2
         refuse 1
         set-back 500000
         after 10
         after 25",
        expect![[r#"
            > complete
            > want web a 1
            #1: insert default/pod/web a@1
            > after 1
            > set-back 3600
            > after 2
            #1 again: insert default/pod/web a@1
            > refuse 1
            > set-back 500000
            > after 10
            #1 again: insert default/pod/web a@1
            > after 25
            #1 again: insert default/pod/web a@1
            #1 again: insert default/pod/web a@1
            event: close, node edge-1 was silent for 30 s
        "#]],
    );
}
