//! Leader election as candidates and observers see it.

mod leadership;
mod observer;

pub(crate) use leadership::Candidacy;
pub use leadership::{CampaignOptions, Leadership, LeadershipEvent, LeadershipEvents};
pub use observer::{Leader, LeaderEvent, LeaderStream};
