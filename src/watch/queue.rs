//! [`Queue`]: the events that wait for one subscriber. Bounded: in order while they are few, merged by key beyond.

use super::event::{Event, News};
use crate::key::Key;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The events that wait for one subscriber.
#[derive(Debug)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    waiting: Waiting,
    /// How many events wait in order.
    bound: u32,
    waker: Option<Waker>,
    /// What becomes of the subscription.
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// The last event is in the queue, or was taken.
    Closed,
    /// The subscriber is gone.
    Abandoned,
}

#[derive(Debug)]
enum Waiting {
    InOrder(VecDeque<Event>),
    /// The subscriber was too slow, and has not caught up since.
    Merged(Box<Merged>),
}

impl Queue {
    /// A queue whose events are merged when more than `bound` wait.
    pub(crate) fn new(bound: u32) -> Self {
        let waiting = Waiting::InOrder(VecDeque::new());
        Queue { inner: Mutex::new(Inner { waiting, bound, waker: None, end: End::Open }) }
    }

    /// Adds events, in order, and says whether the subscriber is still there.
    pub(crate) fn push(&self, events: &[Event]) -> bool {
        let mut inner = self.lock();
        if inner.end != End::Open {
            return inner.end != End::Abandoned;
        }
        events.iter().for_each(|event| inner.push(event.clone()));
        if events.last() == Some(&Event::Closed) {
            inner.end = End::Closed;
        }
        let waker = inner.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// The next event; none behind the last.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Option<Event>> {
        let mut inner = self.lock();
        if let Some(event) = inner.pop() {
            return Poll::Ready(Some(event));
        }
        if inner.end != End::Open {
            return Poll::Ready(None);
        }
        inner.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// The subscriber is gone.
    pub(crate) fn abandon(&self) {
        let mut inner = self.lock();
        inner.end = End::Abandoned;
        inner.waiting = Waiting::InOrder(VecDeque::new());
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.lock().end == End::Abandoned
    }

    /// The events are changed in steps that can't panic half way.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn push(&mut self, event: Event) {
        match &mut self.waiting {
            Waiting::InOrder(events) if events.len() < self.bound as usize => events.push_back(event),
            Waiting::InOrder(events) => {
                let mut merged = Merged::default();
                events.drain(..).chain([event]).for_each(|event| merged.push(event));
                self.waiting = Waiting::Merged(Box::new(merged));
            }
            Waiting::Merged(merged) => merged.push(event),
        }
    }

    fn pop(&mut self) -> Option<Event> {
        match &mut self.waiting {
            Waiting::InOrder(events) => events.pop_front(),
            Waiting::Merged(merged) => {
                let event = merged.pop();
                if merged.events.is_empty() {
                    self.waiting = Waiting::InOrder(VecDeque::new());
                }
                event
            }
        }
    }
}

/// Events merged by key: of each key the newest value, and a deletion before it if there was one. A key that the subscriber
/// never heard of and that is gone again leaves nothing, so that they are never more than two for each key that the
/// subscriber knows or that exists.
#[derive(Debug, Default)]
struct Merged {
    /// By the order in which they are to be told.
    events: BTreeMap<u64, Event>,
    next: u64,
    keys: HashMap<Key, Slot>,
    /// The `Suspended` or `Resumed` that waits.
    link: Option<u64>,
}

/// The events of one key.
#[derive(Debug)]
struct Slot {
    /// Whether the subscriber knows the key from before these events.
    known: bool,
    delete: Option<u64>,
    put: Option<u64>,
}

impl Merged {
    fn push(&mut self, event: Event) {
        match event {
            Event::Changed(news) => self.push_news(news),
            Event::Suspended | Event::Resumed => self.push_link(event),
            Event::Opening(_) | Event::Closed => drop(self.append(event)),
        }
    }

    fn append(&mut self, event: Event) -> u64 {
        self.next += 1;
        self.events.insert(self.next, event);
        self.next
    }

    fn push_news(&mut self, news: Arc<News>) {
        let key = news.key().clone();
        let created = matches!(&*news, News::Put { created: true, .. });
        let mut slot = self.keys.remove(&key).unwrap_or(Slot { known: !created, delete: None, put: None });
        if let Some(put) = slot.put.take() {
            self.events.remove(&put);
        }
        match &*news {
            News::Put { .. } => slot.put = Some(self.append(Event::Changed(news))),
            // Nothing is left to say of a key that came and went unheard.
            News::Delete { .. } if !slot.known => return,
            News::Delete { .. } => {
                if let Some(delete) = slot.delete.take() {
                    self.events.remove(&delete);
                }
                slot.delete = Some(self.append(Event::Changed(news)));
            }
        }
        self.keys.insert(key, slot);
    }

    /// A pair of opposite events that the subscriber didn't hear of leaves nothing.
    fn push_link(&mut self, event: Event) {
        if let Some(before) = self.link.take() {
            self.events.remove(&before);
            return;
        }
        self.link = Some(self.append(event));
    }

    fn pop(&mut self) -> Option<Event> {
        let (at, event) = self.events.pop_first()?;
        match &event {
            Event::Changed(news) => self.told(at, news),
            Event::Suspended | Event::Resumed => self.link = None,
            Event::Opening(_) | Event::Closed => {}
        }
        Some(event)
    }

    fn told(&mut self, at: u64, news: &News) {
        let Some(slot) = self.keys.get_mut(news.key()) else { return };
        if slot.delete == Some(at) {
            slot.delete = None;
            slot.known = false;
        } else {
            slot.put = None;
        }
        if slot.delete.is_none() && slot.put.is_none() {
            self.keys.remove(news.key());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BackendKind, KvPair, Version};
    use proptest::prelude::*;
    use std::task::Waker;

    fn put(key: &str, index: u64, created: bool) -> Event {
        let (key, version) = (Key::parse(key).unwrap(), Version::new(BackendKind::Custom, index));
        Event::Changed(Arc::new(News::Put { pair: KvPair { key, value: Default::default(), version }, created }))
    }

    fn delete(key: &str, index: u64) -> Event {
        let (key, version) = (Key::parse(key).unwrap(), Version::new(BackendKind::Custom, index));
        Event::Changed(Arc::new(News::Delete { key, version }))
    }

    fn take(queue: &Queue) -> Option<Event> {
        match queue.poll(&Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => event,
            Poll::Pending => None,
        }
    }

    fn drain(queue: &Queue) -> Vec<Event> {
        std::iter::from_fn(|| take(queue)).collect()
    }

    #[test]
    fn few_events_stay_as_they_are() {
        let queue = Queue::new(4);
        let events = [put("a", 1, true), put("a", 2, false), delete("a", 3), put("a", 4, true)];
        queue.push(&events);
        assert_eq!(drain(&queue), events);
    }

    #[test]
    fn many_events_keep_the_newest_value_of_each_key_and_deletions() {
        let queue = Queue::new(2);
        queue.push(&[put("a", 1, false), put("b", 2, false), put("a", 3, false), delete("b", 4)]);
        queue.push(&[put("b", 5, true), put("c", 6, true)]);
        assert_eq!(drain(&queue), [put("a", 3, false), delete("b", 4), put("b", 5, true), put("c", 6, true)]);
    }

    #[test]
    fn a_key_that_came_and_went_unheard_leaves_nothing() {
        let queue = Queue::new(1);
        for index in 0..1000 {
            let key = format!("k{index}");
            queue.push(&[put(&key, index, true), delete(&key, index)]);
        }
        queue.push(&[put("a", 9, false)]);
        // The first of them was in the queue before it was full.
        assert_eq!(drain(&queue), [put("a", 9, false)]);
    }

    #[test]
    fn the_link_that_went_and_came_unheard_leaves_nothing() {
        let queue = Queue::new(1);
        queue.push(&[put("a", 1, false), Event::Suspended, Event::Resumed, Event::Suspended]);
        assert_eq!(drain(&queue), [put("a", 1, false), Event::Suspended]);
        queue.push(&[Event::Resumed, Event::Suspended, Event::Resumed]);
        assert_eq!(drain(&queue), [Event::Resumed]);
    }

    #[test]
    fn nothing_comes_behind_closed() {
        let queue = Queue::new(1);
        queue.push(&[put("a", 1, false), Event::Closed]);
        queue.push(&[put("a", 2, false)]);
        assert_eq!(drain(&queue), [put("a", 1, false), Event::Closed]);
        assert_eq!(queue.poll(&Context::from_waker(Waker::noop())), Poll::Ready(None));
    }

    /// What somebody who heard these events knows: the index of each key.
    fn fold(known: &mut HashMap<String, u64>, events: &[Event]) {
        for event in events {
            let Event::Changed(news) = event else { continue };
            match &**news {
                News::Put { pair, .. } => {
                    let before = known.insert(pair.key.as_str().into(), pair.version.index());
                    assert!(before < Some(pair.version.index()));
                }
                News::Delete { key, .. } => assert!(known.remove(key.as_str()).is_some(), "{key} was not known"),
            }
        }
    }

    proptest! {
        /// Whenever the subscriber reads, it ends up with what happened, is told of no deletion of what it doesn't know, and
        /// the queue holds two events for each key at the most.
        #[test]
        fn merged_events_tell_the_same_story(steps in prop::collection::vec((0..6u8, 0..4u8, any::<bool>()), 0..300)) {
            let queue = Queue::new(3);
            let (mut truth, mut told) = (HashMap::new(), HashMap::new());
            for (index, (key, action, read)) in steps.into_iter().enumerate() {
                let (key, index) = (format!("k{key}"), index as u64);
                let event = match (action, truth.contains_key(&key)) {
                    (0, true) => delete(&key, index),
                    (_, exists) => put(&key, index, !exists),
                };
                fold(&mut truth, std::slice::from_ref(&event));
                queue.push(&[event]);
                if read && index % 7 == 0 {
                    fold(&mut told, &std::iter::from_fn(|| take(&queue)).take(2).collect::<Vec<_>>());
                }
                if let Waiting::Merged(merged) = &queue.lock().waiting {
                    prop_assert!(merged.events.len() <= 12);
                    prop_assert!(merged.keys.len() <= 6);
                }
            }
            fold(&mut told, &drain(&queue));
            prop_assert_eq!(told, truth);
        }
    }
}
