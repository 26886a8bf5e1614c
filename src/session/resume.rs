//! Sessions that survive their connection (`contracts/action-cable-extended.md` section 2).

use crate::model::{Admission, CloseCause, ResumeTicket, SavedSession, SavedSubscription, Topic};

use super::subscription::{Answerer, Subscription, SubscriptionRef};
use super::{Context, Effect, Marks, Rules, Session};

impl Session {
    /// Whether its client can come back to it on another connection. The same for as long as it lives.
    pub fn is_resumable(&self, rules: &Rules) -> bool {
        rules.sessions && self.dialect.language().resumes()
    }

    /// Whether whoever shows this ticket may have it.
    pub fn may_be_resumed_by(&self, ticket: &ResumeTicket) -> bool {
        ticket.opens(self.admission, self.identifiers())
    }

    /// What its client shows to come back to it, if it can.
    pub(super) fn resume_token(&self, ctx: &Context<'_>) -> Option<String> {
        if self.is_resumable(ctx.rules) { (ctx.resume_token)(self.sid) } else { None }
    }

    /// The session that ended for this reason, as its client finds it again.
    pub(super) fn saved(&self, cause: CloseCause, subscriptions: &super::Subscriptions) -> Option<Box<SavedSession>> {
        let leaves_session = cause.leaves_session() && self.admission != Admission::No;
        leaves_session.then(|| {
            Box::new(SavedSession {
                sid: self.sid,
                saved_at: 0,
                identifiers: self.identifiers().into(),
                admission: self.admission,
                cstate: self.cstate.clone(),
                subscriptions: subscriptions.iter().map(SubscriptionRef::saved).collect(),
                disconnectable: self.marks.has(Marks::DISCONNECTABLE),
            })
        })
    }

    /// Goes on with a session that was saved. Its streams are followed before the client hears of it.
    pub(super) fn resume(&mut self, saved: SavedSession, ctx: &mut Context<'_>) {
        let SavedSession { identifiers, admission, cstate, subscriptions, disconnectable, .. } = saved;
        self.cstate = cstate;
        self.marks.set(Marks::DISCONNECTABLE, disconnectable);
        self.let_in(&identifiers, admission, ctx);
        for saved in subscriptions {
            let Some(subscription) = Subscription::restored(saved, ctx.topic) else { continue };
            let seen = subscription.as_ref();
            seen.topics().for_each(|topic| ctx.emit(Effect::Attach(topic.clone())));
            if seen.topics().next().is_some() && self.ping_interval_ms > 0 {
                self.hold(seen.shared_identifier());
            }
            self.subscriptions.push(subscription);
        }
        let identifiers: Vec<&str> = self.subscriptions.iter().map(SubscriptionRef::identifier).collect();
        let token = self.resume_token(ctx);
        self.say(ctx, |language, out| language.write_resumed(out, self.sid, token.as_deref(), &identifiers));
    }
}

impl SubscriptionRef<'_> {
    fn saved(self) -> SavedSubscription {
        let here = match self.by {
            Answerer::App => None,
            Answerer::Here { whisper, presence } => Some((whisper, presence)),
        };
        SavedSubscription { topics: self.all_topics().cloned().collect(), istate: self.istate(), here }
    }
}

impl Subscription {
    /// `None` for one without topics, which is never written.
    fn restored(saved: SavedSubscription, shared: &dyn Fn(&str, &str) -> Topic) -> Option<Subscription> {
        let SavedSubscription { topics, istate, here } = saved;
        let by = here.map_or(Answerer::App, |(whisper, presence)| Answerer::Here { whisper, presence });
        let mut topics = topics.iter().map(|topic| shared(topic.identifier(), topic.stream()));
        let mut subscription = Subscription::new(topics.next()?, by);
        topics.for_each(|topic| subscription.push(topic));
        subscription.set_istate(istate);
        Some(subscription)
    }
}
