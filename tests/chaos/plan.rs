//! [`Step`]: one fault at its time. The seed decides all of them.

use crate::common::Cluster;
use fastrand::Rng;
use std::time::Duration;
use tokio::time::sleep;

/// What goes wrong with a cluster, or with the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillLeader,
    KillFollower,
    FreezeLeader,
    FreezeFollower,
    /// Connections of clients to one node are closed, and new ones refused.
    CutNode,
    /// Nothing more passes between the clients and one node.
    IsolateNode,
    CutAll,
    IsolateAll,
    /// Requests are carried out, and nobody hears of it.
    HoldAnswers,
    /// Requests arrive when the fault is over.
    HoldRequests,
    /// New connections are accepted and lead nowhere.
    HalfOpen,
    SlowLink,
    NarrowLink,
    /// Connections break in the middle of an answer.
    BreakAnswers,
    WipeFollower,
    RollingRestart,
}

impl Fault {
    pub const ALL: [Fault; 16] = [
        Fault::KillLeader,
        Fault::KillFollower,
        Fault::FreezeLeader,
        Fault::FreezeFollower,
        Fault::CutNode,
        Fault::IsolateNode,
        Fault::CutAll,
        Fault::IsolateAll,
        Fault::HoldAnswers,
        Fault::HoldRequests,
        Fault::HalfOpen,
        Fault::SlowLink,
        Fault::NarrowLink,
        Fault::BreakAnswers,
        Fault::WipeFollower,
        Fault::RollingRestart,
    ];
}

/// A fault, after some time in which all is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub calm: Duration,
    pub fault: Fault,
    pub lasts: Duration,
    /// Which of the nodes it hits, where that isn't for their roles to say.
    pub node: usize,
    /// How bad it is: the delay in milliseconds, or the bytes that pass, as the fault has it.
    pub degree: u64,
}

/// The faults of one run.
pub fn plan(rng: &mut Rng, steps: usize) -> Vec<Step> {
    let step = |_| Step {
        calm: Duration::from_millis(rng.u64(300..900)),
        fault: Fault::ALL[rng.usize(..Fault::ALL.len())],
        // Most are over before anything that hangs on a session is lost, some are not.
        lasts: Duration::from_millis(if rng.u8(..4) == 0 { rng.u64(3000..7000) } else { rng.u64(200..2500) }),
        node: rng.usize(..NODES),
        degree: rng.u64(20..200),
    };
    (0..steps).map(step).collect()
}

const NODES: usize = 3;

impl Step {
    /// Has the fault happen, and mends it.
    pub async fn carry_out(&self, cluster: &Cluster) {
        sleep(self.calm).await;
        self.begin(cluster).await;
        sleep(self.lasts).await;
        cluster.heal().await;
    }

    async fn begin(&self, cluster: &Cluster) {
        let leader = cluster.leader().await.unwrap_or(self.node);
        // One that isn't the leader.
        let follower = if self.node == leader { (leader + 1) % NODES } else { self.node };
        let each = |order: &dyn Fn(&crate::common::Proxy)| (0..NODES).for_each(|node| order(cluster.proxy(node)));
        let node = &cluster.nodes()[follower];
        match self.fault {
            Fault::KillLeader => cluster.nodes()[leader].kill(),
            Fault::KillFollower => node.kill(),
            Fault::FreezeLeader => cluster.nodes()[leader].freeze(),
            Fault::FreezeFollower => node.freeze(),
            Fault::CutNode => cluster.proxy(self.node).cut(),
            Fault::IsolateNode => cluster.proxy(self.node).blackhole(),
            Fault::CutAll => each(&|proxy| proxy.cut()),
            Fault::IsolateAll => each(&|proxy| proxy.blackhole()),
            Fault::HoldAnswers => each(&|proxy| proxy.hold_answers()),
            Fault::HoldRequests => each(&|proxy| proxy.hold_requests()),
            Fault::HalfOpen => each(&|proxy| proxy.half_open()),
            Fault::SlowLink => each(&|proxy| proxy.delay(Duration::from_millis(self.degree))),
            Fault::NarrowLink => each(&|proxy| proxy.throttle(self.degree * 100)),
            Fault::BreakAnswers => each(&|proxy| proxy.close_at(self.degree * 10)),
            Fault::WipeFollower => cluster.wipe(follower).await,
            Fault::RollingRestart => {
                for node in cluster.nodes() {
                    node.restart().await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan_and_all_faults_come_up() {
        let plan = |seed| plan(&mut Rng::with_seed(seed), 3);
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
        let mut met: Vec<_> = (0..40).flat_map(plan).map(|step| step.fault).collect();
        met.sort_unstable();
        met.dedup();
        assert_eq!(met, Fault::ALL);
    }
}
