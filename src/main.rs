//! Command line: operator | host | crds.
fn main() { for crd in drover::api::crds() { println!("---\n{}", serde_saphyr::to_string(&crd).unwrap()); } }
