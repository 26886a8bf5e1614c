//! All of it as data, for another program that goes on with it in this process: the same numbers of children, the same bound.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::hub::StreamKey;
use crate::link::local::Sender;
use crate::link::local::messages::ToChild;
use crate::model::{Publication, Sid};

use super::{CHILDREN_MAX, Change, Child, OnWay, State, Waiting};

/// What the relay knows of its children and who waits.
#[derive(Default, Serialize, Deserialize)]
pub struct GivenState {
    children: Vec<GivenChild>,
    free: u32,
    /// What each publication that is not delivered holds; children name them by their place here.
    wholes: Vec<u32>,
    waiting: Vec<GivenWaiting>,
}

#[derive(Serialize, Deserialize)]
struct GivenChild {
    number: u16,
    /// Keys of streams.
    followed: Vec<u64>,
    follows: u64,
    present: Vec<(u64, Sid)>,
    /// Publications, and what this child has not given back of them.
    on_way: Vec<(u32, u32)>,
    /// It has handed over to another one.
    #[serde(default)]
    has_left: bool,
}

#[derive(Serialize, Deserialize)]
struct GivenWaiting {
    child: u16,
    number: u64,
    publications: Vec<Publication>,
}

impl GivenState {
    /// The numbers of the children, lowest first.
    pub fn numbers(&self) -> impl Iterator<Item = u16> {
        self.children.iter().map(|child| child.number)
    }
}

impl State {
    /// All of it. What is in the links is not.
    pub fn export(&self) -> GivenState {
        let mut followed: Vec<Vec<u64>> = self.children.iter().map(|_| Vec::new()).collect();
        self.followers.for_all(|stream, number| followed[usize::from(number)].push(stream.to_bits()));
        let mut given = GivenState { free: self.free, ..GivenState::default() };
        let mut known: HashMap<*const u32, u32> = HashMap::new();
        for ((number, child), followed) in (0..).zip(&self.children).zip(followed) {
            let Some(Child { on_way, follows, present, change, .. }) = child else { continue };
            let on_way = on_way.iter().map(|OnWay { whole, left }| {
                let at = *known.entry(Arc::as_ptr(whole)).or_insert_with(|| {
                    given.wholes.push(**whole);
                    given.wholes.len() as u32 - 1
                });
                (at, *left)
            });
            let on_way = on_way.collect();
            let present = present.iter().map(|(stream, sid)| (stream.to_bits(), *sid)).collect();
            given.children.push(GivenChild {
                number,
                followed,
                follows: *follows,
                present,
                on_way,
                has_left: change.has_left(),
            });
        }
        given.waiting = self.waiting.iter().map(GivenWaiting::of).collect();
        given
    }

    /// The same again. `sender` gives the link to each child.
    ///
    /// # Errors
    /// It cannot be.
    pub fn import(
        given: GivenState,
        stream_seed: u64,
        mut sender: impl FnMut(u16) -> Result<Sender<ToChild>, String>,
    ) -> Result<State, String> {
        let mut state = State::new(stream_seed);
        state.free = given.free;
        let wholes: Vec<Arc<u32>> = given.wholes.into_iter().map(Arc::new).collect();
        for GivenChild { number, followed, follows, present, on_way, has_left } in given.children {
            if usize::from(number) >= CHILDREN_MAX {
                return Err(format!("a process has the number {number} in the relay"));
            }
            let on_way = on_way.into_iter().map(|(at, left)| {
                let whole = wholes.get(at as usize).ok_or("a publication on its way is missing")?;
                Ok(OnWay { whole: Arc::clone(whole), left })
            });
            let on_way = on_way.collect::<Result<_, &str>>()?;
            let present = present.into_iter().map(|(stream, sid)| (StreamKey::from_bits(stream), sid)).collect();
            for stream in followed {
                state.followers.follow(StreamKey::from_bits(stream), number, || {});
            }
            if state.children.len() <= usize::from(number) {
                state.children.resize_with(usize::from(number) + 1, || None);
            }
            let (sender, change) = (sender(number)?, if has_left { Change::left() } else { Change::None });
            state.children[usize::from(number)] = Some(Child { sender, on_way, follows, present, change });
        }
        state.waiting = given.waiting.into_iter().map(Waiting::from).collect();
        // Each is held by a child, or has no place any more.
        state.free += wholes.into_iter().filter_map(Arc::into_inner).sum::<u32>();
        Ok(state)
    }
}

impl GivenWaiting {
    fn of(Waiting { child, number, publications }: &Waiting) -> GivenWaiting {
        GivenWaiting { child: *child, number: *number, publications: publications.iter().cloned().collect() }
    }
}

impl From<GivenWaiting> for Waiting {
    fn from(GivenWaiting { child, number, publications }: GivenWaiting) -> Waiting {
        Waiting { child, number, publications: publications.into() }
    }
}
