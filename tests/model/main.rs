//! The two decision functions, explored: every order of events within the stated bounds, and the invariants in each of them.
//!
//! The decisions are the real ones. The world around them (API server, libvirt, relay, Prism, people, faults) is a model that takes each
//! step apart: a process may stop before and after each record and each effect, a second controller may act on what it saw long ago.

#![allow(clippy::wildcard_enum_match_arm, reason = "a model names the few cases that matter")]

mod controller;
mod explorer;
mod faults;
mod host;
mod intern;
mod invariants;
mod planted;
mod prism;
mod user;
mod world;

use explorer::{Report, Violation, explore};
use planted::Bug;
use world::{Bounds, Canary, Model, Start, TWO_AGES};

/// Enough for every planted mistake.
const SMALL: Bounds = Bounds {
    start: Start::InSync,
    events: 2,
    controllers: 2,
    pauses: 4,
    ages: TWO_AGES,
    epochs: 20,
    target_orders: 8,
    changes: 16,
    gives_up: false,
    canary: Canary::Shown,
};

fn print(name: &str, report: &Report) {
    println!(
        "{name:<28} {:>9} states {:>10} transitions {:>8} cut  depth {:>3}  {:>6.1} s  {}",
        report.states,
        report.transitions,
        report.cut,
        report.depth,
        report.seconds,
        if report.complete { "complete" } else { "not complete" }
    );
}

fn holds(bounds: Bounds, max_states: usize) {
    let name = format!("{:?}, {} events", bounds.start, bounds.events);
    match explore(&mut Model::new(bounds, None), max_states) {
        Ok(report) => print(&name, &report),
        Err(violation) => panic!("{name}: {}", told(&violation)),
    }
}

fn told(violation: &Violation) -> String {
    let Violation { broken, trace, report } = violation;
    format!("{}: {}\nafter {} states:\n  {}", broken.invariant, broken.what, report.states, trace.join("\n  "))
}

#[test]
fn the_invariants_hold_with_two_events_from_everywhere() {
    for start in [Start::Created, Start::InSync, Start::Approved, Start::Migrated] {
        holds(Bounds { start, events: 2, ..SMALL }, 300_000);
    }
    holds(Bounds { start: Start::Approved, events: 1, gives_up: true, ..SMALL }, 300_000);
    for canary in [Canary::Differs, Canary::NotOffered] {
        holds(Bounds { start: Start::Created, events: 1, canary, ..SMALL }, 300_000);
    }
}

#[test]
#[ignore = "takes long: make explore"]
fn the_invariants_hold_with_three_events_from_everywhere() {
    for start in [Start::Approved, Start::Migrated, Start::InSync, Start::Created] {
        holds(Bounds { start, events: 3, ..SMALL }, 20_000_000);
    }
}

fn is_found(bug: Bug, start: Start, events: u8, invariants: &[&str]) {
    let canary = if bug == Bug::IgnoreCanary { Canary::Differs } else { Canary::Shown };
    let bounds = Bounds { start, events, canary, ..SMALL };
    let Err(violation) = explore(&mut Model::new(bounds, Some(bug)), 3_000_000) else {
        panic!("{bug:?} is not found");
    };
    let Violation { broken, report, .. } = &*violation;
    assert!(invariants.contains(&broken.invariant), "{bug:?} was found as something else: {}", told(&violation));
    println!("{:<22} {:<9} {} ({} states)", format!("{bug:?}"), broken.invariant, broken.what, report.states);
}

#[test]
fn planted_mistakes_are_found() {
    is_found(Bug::PowerOnBeforeDrain, Start::Approved, 0, &["I2"]);
    is_found(Bug::AcceptStaleApproval, Start::InSync, 1, &["I5"]);
    is_found(Bug::ForgetAutostart, Start::Approved, 1, &["I1", "I4"]);
    is_found(Bug::NoSecondProof, Start::Approved, 1, &["I1", "I2"]);
    is_found(Bug::IgnoreTarget, Start::Approved, 2, &["I1"]);
    is_found(Bug::ForgetProven, Start::Approved, 2, &["I1", "I2"]);
    is_found(Bug::RepairBesideRelay, Start::Approved, 1, &["I2"]);
    is_found(Bug::IgnoreLateData, Start::Approved, 2, &["I2"]);
    is_found(Bug::IgnoreOpenTasks, Start::Approved, 1, &["I1"]);
    is_found(Bug::NoFence, Start::Approved, 2, &["I1"]);
    is_found(Bug::IgnoreEpoch, Start::Approved, 2, &["I1", "I2"]);
    is_found(Bug::IgnoreCanary, Start::Created, 0, &["I2"]);
}
