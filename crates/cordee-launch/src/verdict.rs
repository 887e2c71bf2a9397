//! Which of the ranks that failed is the cause.

use cordee_protocol::Failure;

/// A rank that failed before the launcher killed anyone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suspect<'a> {
    pub(crate) rank: usize,
    /// Its place in the order in which the ranks ended.
    pub(crate) order: usize,
    /// The reason it gave.
    pub(crate) failure: Option<&'a Failure>,
}

impl Suspect<'_> {
    /// Whether it says itself that it fell because another rank did.
    pub(crate) fn is_victim(&self) -> bool {
        self.failure.is_some_and(|failure| failure.blames.is_some())
    }
}

/// The rank that ended first, unless it calls itself a victim and another does not.
pub(crate) fn culprit<'a>(suspects: &[Suspect<'a>]) -> Option<Suspect<'a>> {
    suspects
        .iter()
        .copied()
        .min_by_key(|suspect| (suspect.is_victim(), suspect.order))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(blames: Option<usize>) -> Failure {
        Failure {
            rank: 0,
            blames,
            code: 1,
            message: "lost".to_owned(),
            hint: None,
        }
    }

    #[test]
    fn the_first_to_end_is_the_cause_unless_it_is_a_victim() {
        let (own, of_2, of_3) = (failure(None), failure(Some(2)), failure(Some(3)));
        let suspect = |rank, order, failure| Suspect {
            rank,
            order,
            failure,
        };
        let named = |suspects: &[Suspect<'_>]| culprit(suspects).map(|suspect| suspect.rank);
        assert_eq!(
            named(&[suspect(0, 1, None), suspect(2, 0, Some(&own))]),
            Some(2)
        );
        assert_eq!(
            named(&[suspect(0, 0, Some(&of_2)), suspect(2, 1, None)]),
            Some(2)
        );
        assert_eq!(
            named(&[suspect(0, 0, Some(&of_2)), suspect(1, 1, Some(&of_3))]),
            Some(0)
        );
        assert_eq!(named(&[]), None);
    }
}
