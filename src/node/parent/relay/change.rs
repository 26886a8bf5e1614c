//! One child takes over from another one: what is for the clients of both meanwhile, and whose it is.
//!
//! ```text
//!                  old child                       new child
//! will_succeed     Succeeded                       Awaits { held: None }
//! it hands over    Succeeded { has_handed_over }   Awaits { held }    follows and presence are the new one's, and what is for
//!                                                                     its clients is held
//!   "taken over"   the same                        None               what is held goes to the new one
//!   "I go on"      None                            None               everything goes back to the old one
//! ```
//!
//! Who goes on is agreed upon by the two; this only listens to them. A child that is lost says by that what it cannot say any
//! more: without the new one the old one goes on, and without the old one the new one has everything or ends, too.

use std::mem::take;

use crate::link::local::Frame;
use crate::link::local::messages::ToChild;

use super::state::{Child, State};

/// A child's part in a change.
#[derive(Default)]
pub enum Change {
    /// It has none.
    #[default]
    None,
    /// It is to be succeeded.
    Succeeded {
        by: u16,
        has_handed_over: bool,
        /// It has asked to be told when the new one has taken over.
        asks: Option<u64>,
    },
    /// It is to take over.
    Awaits {
        /// The old one, if it is not lost.
        from: Option<u16>,
        /// What is for its clients, from when the old one has handed over.
        held: Option<Vec<Frame>>,
    },
}

impl Change {
    /// Of a child that has handed over, and whose successor has everything.
    pub fn left() -> Change {
        // It waits for nobody.
        Change::Succeeded { by: u16::MAX, has_handed_over: true, asks: None }
    }

    /// Whether it has handed over.
    pub fn has_left(&self) -> bool {
        matches!(self, Change::Succeeded { has_handed_over: true, .. })
    }
}

impl Child {
    /// Says what is for clients, or keeps it while nobody knows who has them.
    pub fn give(&mut self, frame: Frame) {
        match &mut self.change {
            Change::Awaits { held: Some(held), .. } => held.push(frame),
            // Its successor gets it.
            Change::Succeeded { has_handed_over: true, .. } => {}
            Change::None | Change::Awaits { .. } | Change::Succeeded { .. } => self.sender.put_frame(frame),
        }
    }
}

impl State {
    fn child(&self, number: u16) -> Option<&Child> {
        self.children.get(usize::from(number))?.as_ref()
    }

    fn child_mut(&mut self, number: u16) -> Option<&mut Child> {
        self.children.get_mut(usize::from(number))?.as_mut()
    }

    /// Gives what it was before.
    fn set_change(&mut self, number: u16, change: Change) -> Change {
        self.child_mut(number).map(|child| std::mem::replace(&mut child.change, change)).unwrap_or_default()
    }

    /// Whether a child has not said yet that it has everything of another one.
    fn awaits(&self, new: u16, old: u16) -> bool {
        matches!(self.child(new), Some(Child { change: Change::Awaits { from, .. }, .. }) if *from == Some(old))
    }

    /// `new` is to take over from `old`.
    pub fn will_succeed(&mut self, old: u16, new: u16) {
        self.set_change(old, Change::Succeeded { by: new, has_handed_over: false, asks: None });
        self.set_change(new, Change::Awaits { from: Some(old), held: None });
    }

    /// Whether there is a child that has not said yet that it has what another one had.
    pub fn is_changing(&self) -> bool {
        self.children.iter().flatten().any(|child| matches!(child.change, Change::Awaits { .. }))
    }

    /// Who has by now what this child says of itself.
    pub fn goes_on_as(&self, number: u16) -> u16 {
        match self.child(number).map(|child| &child.change) {
            Some(Change::Succeeded { by, has_handed_over: true, .. }) if self.awaits(*by, number) => *by,
            _ => number,
        }
    }

    /// A child delivers nothing more.
    pub fn hands_over(&mut self, old: u16) {
        let Some(Child { change: Change::Succeeded { by, has_handed_over, .. }, present, .. }) = self.child_mut(old)
        else {
            return;
        };
        *has_handed_over = true;
        let (new, present) = (*by, take(present));
        self.followers.rename(old, new);
        if let Some(child) = self.child_mut(new) {
            child.present.extend(present);
            child.change = Change::Awaits { from: Some(old), held: Some(Vec::new()) };
        }
    }

    /// A child keeps what it was to hand over.
    pub fn goes_on(&mut self, old: u16) {
        if let Some(Child { change: Change::Succeeded { by, .. }, .. }) = self.child(old)
            && self.awaits(*by, old)
        {
            self.give_back(old, *by);
        }
    }

    fn give_back(&mut self, old: u16, new: u16) {
        self.set_change(old, Change::None);
        self.followers.rename(new, old);
        let Some(child) = self.child_mut(new) else { return };
        let Change::Awaits { held, .. } = take(&mut child.change) else { return };
        let (on_way, present) = (take(&mut child.on_way), take(&mut child.present));
        if let Some(child) = self.child_mut(old) {
            child.on_way.extend(on_way);
            child.present.extend(present);
            held.into_iter().flatten().for_each(|frame| child.give(frame));
        }
    }

    /// A child that has handed over wants to be told when the new one has said what it has. Tells whether that is so already.
    pub fn asks_for_successor(&mut self, old: u16, number: u64) -> bool {
        let is_over = self.goes_on_as(old) == old;
        if let Some(Child { change: Change::Succeeded { asks, .. }, .. }) = self.child_mut(old) {
            *asks = Some(number).filter(|_| !is_over);
        }
        is_over
    }

    /// A child has everything of the one before it, and has said what that is.
    pub fn taken_over(&mut self, new: u16) {
        let Change::Awaits { from, held } = self.set_change(new, Change::None) else { return };
        if let Some(child) = self.child_mut(new) {
            held.into_iter().flatten().for_each(|frame| child.give(frame));
        }
        from.into_iter().for_each(|old| self.tell_of_successor(old));
    }

    fn tell_of_successor(&mut self, old: u16) {
        if let Some(Child { change: Change::Succeeded { asks, .. }, sender, .. }) = self.child_mut(old)
            && let Some(number) = asks.take()
        {
            sender.put(&ToChild::Taken(number));
        }
    }

    /// A child is lost that may have a part in a change.
    pub fn lost_in_change(&mut self, number: u16) {
        match self.child(number).map(|child| &child.change) {
            Some(&Change::Succeeded { by, .. }) if self.awaits(by, number) => {
                // The new one has everything, and what it says of that is on its way; or it ends, too.
                if let Some(Child { change: Change::Awaits { from, .. }, .. }) = self.child_mut(by) {
                    *from = None;
                }
            }
            Some(&Change::Awaits { from: Some(old), .. }) => {
                self.tell_of_successor(old);
                self.give_back(old, number);
            }
            _ => {}
        }
    }
}
