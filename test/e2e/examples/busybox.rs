//! Writes the test image of busybox to a file: `cargo run -p kedge-e2e --example busybox -- FILE`.

fn main() {
    let file = std::env::args().nth(1).expect("usage: busybox FILE");
    kedge_e2e::images::write_busybox(std::path::Path::new(&file));
}
