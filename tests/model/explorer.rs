//! Breadth-first search: every state that can be reached, each once, and the shortest way to one that must not be.

use std::collections::{HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

/// What an action leads to.
pub enum Step<S> {
    To(S),
    /// Beyond the stated bounds: not followed, but counted.
    Cut,
    /// Something that must never happen.
    Broken(Broken),
}

/// An invariant that does not hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken {
    pub invariant: &'static str,
    pub what: String,
}

/// What can be explored.
pub trait World {
    type State: Clone + Eq + Hash;
    type Action: Copy + Debug;

    fn start(&mut self) -> Self::State;
    /// Every action that could ever be; the same list each time.
    fn actions(&self) -> Vec<Self::Action>;
    /// `None`: the action is not possible in this state.
    fn apply(&mut self, state: &Self::State, action: Self::Action) -> Option<Step<Self::State>>;
    /// What must hold in a state apart from how it was reached.
    fn check(&mut self, state: &Self::State) -> Result<(), Broken>;
}

/// How much was seen.
#[derive(Debug, Default)]
pub struct Report {
    pub states: usize,
    pub transitions: usize,
    pub cut: usize,
    pub depth: usize,
    pub seconds: f64,
    /// Nothing is left unexplored within the bounds.
    pub complete: bool,
}

/// The shortest way to a broken invariant.
#[derive(Debug)]
pub struct Violation {
    pub broken: Broken,
    pub trace: Vec<String>,
    pub report: Report,
}

/// A number that two states share only by an accident that is never met: 128 bits.
pub fn fingerprint(state: &impl Hash) -> u128 {
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        (seed, state).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

/// How a state was first reached.
struct Origin {
    parent: u32,
    action: u16,
}

/// Explores until nothing is new, an invariant breaks, or `max_states` were seen.
pub fn explore<W: World>(world: &mut W, max_states: usize) -> Result<Report, Box<Violation>> {
    let began = Instant::now();
    let actions = world.actions();
    let start = world.start();
    let mut seen = HashSet::from([fingerprint(&start)]);
    let mut origins = vec![Origin { parent: 0, action: 0 }];
    let mut frontier = VecDeque::from([(0u32, 0usize, start)]);
    let mut report = Report::default();
    while let Some((index, depth, state)) = frontier.pop_front() {
        report.depth = depth;
        let mut broken = world.check(&state).err();
        let mut last = None;
        for (number, action) in actions.iter().enumerate() {
            if broken.is_some() {
                break;
            }
            let Some(step) = world.apply(&state, *action) else { continue };
            report.transitions += 1;
            match step {
                Step::To(next) if seen.insert(fingerprint(&next)) => {
                    let next_index = u32::try_from(origins.len()).expect("the bound on states is far below 2^32");
                    origins.push(Origin { parent: index, action: u16::try_from(number).expect("few actions") });
                    frontier.push_back((next_index, depth + 1, next));
                }
                Step::To(_) => {}
                Step::Cut => report.cut += 1,
                Step::Broken(what) => {
                    last = Some(*action);
                    broken = Some(what);
                }
            }
        }
        report.states = origins.len();
        report.seconds = began.elapsed().as_secs_f64();
        if let Some(broken) = broken {
            let way = trace(&origins, &actions, index).into_iter().chain(last);
            let trace = way.map(|action| format!("{action:?}")).collect();
            return Err(Box::new(Violation { broken, trace, report }));
        }
        if origins.len() >= max_states {
            return Ok(report);
        }
    }
    report.complete = true;
    Ok(report)
}

fn trace<A: Copy>(origins: &[Origin], actions: &[A], mut index: u32) -> Vec<A> {
    let mut way = Vec::new();
    while index != 0 {
        let origin = &origins[index as usize];
        way.push(actions[usize::from(origin.action)]);
        index = origin.parent;
    }
    way.reverse();
    way
}
