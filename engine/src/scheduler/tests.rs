//! The scheduler by itself: a turn plans, a scripted model computes and appends.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const BUDGET: Budget = Budget { sequences_max: 4, step_tokens_max: 40, step_logits_max: 8, shares_answers: true };

fn key(request: u64) -> SequenceKey {
    SequenceKey { request, choice: 0 }
}

/// A prompt that no other has, or the beginning of one that all have.
fn prompt(request: u64, length: usize) -> Vec<TokenId> {
    (0..length as u32).map(|place| request as u32 * 1000 + place).collect()
}

fn needs(tokens: Vec<TokenId>, new_tokens: usize) -> Needs {
    let (num_prompt, logits_from, tokens_max) = (tokens.len(), tokens.len() - 1, tokens.len() + new_tokens);
    Needs { tokens, num_prompt, tokens_max, logits_from, priority: 0, root: Some(Prefix::root("")) }
}

fn places(plan: &Plan) -> Vec<(u64, Range<usize>)> {
    plan.chunks.iter().map(|chunk| (chunk.key.request, chunk.places.clone())).collect()
}

/// Runs one turn: every chunk that reaches the last token of its sequence gives the next one, until it has `lengths`.
fn turn(scheduler: &mut Scheduler, plan: &mut Plan, lengths: &dyn Fn(SequenceKey) -> usize) -> Vec<SequenceKey> {
    turn_of(scheduler, plan, lengths, usize::MAX)
}

/// As [`turn`], with so many tokens of prompts beside answers.
fn turn_of(
    scheduler: &mut Scheduler,
    plan: &mut Plan,
    lengths: &dyn Fn(SequenceKey) -> usize,
    prompt_tokens: usize,
) -> Vec<SequenceKey> {
    scheduler.plan(plan, prompt_tokens);
    let mut ended = Vec::new();
    for chunk in &plan.chunks {
        let num_tokens = scheduler.tokens(chunk.key).len();
        if chunk.places.end < num_tokens {
            scheduler.commit(chunk, chunk.places.end);
        } else {
            scheduler.append(chunk.key, 7);
            scheduler.commit(chunk, num_tokens);
            if num_tokens + 1 >= lengths(chunk.key) {
                ended.push(chunk.key);
            }
        }
    }
    ended.iter().for_each(|&key| scheduler.remove(key));
    ended
}

#[test]
fn decoding_comes_before_prompts_and_prompts_are_cut_into_chunks() {
    let mut scheduler = Scheduler::new(BUDGET, 100);
    let mut plan = Plan::default();
    scheduler.enqueue(key(0), needs(prompt(0, 2), 9));
    scheduler.enqueue(key(1), needs(prompt(1, 70), 9));
    turn(&mut scheduler, &mut plan, &|_| 99);
    assert_eq!(plan.admitted, [(key(0), 0), (key(1), 0)]);
    assert_eq!(places(&plan), [(0, 0..2), (1, 0..38)]);
    assert_eq!((plan.chunks[0].logits.clone(), plan.chunks[1].logits.len()), (1..2, 0));
    turn(&mut scheduler, &mut plan, &|_| 99);
    assert_eq!(places(&plan), [(0, 2..3), (1, 38..70)], "beside as many that decode prompts take the whole step");
    assert_eq!(plan.chunks[1].logits, 69..70);
}

#[test]
fn the_more_decode_the_less_prompts_take() {
    // Of three that decode for each prompt the gaps count, of two the prompts.
    for (num_decoding, num_prompts, tokens) in
        [(1, 0, 0), (2, 1, 150), (3, 1, 55), (3, 2, 197), (10, 1, 34), (20, 1, 16)]
    {
        let mut scheduler =
            Scheduler::new(Budget { sequences_max: 30, step_tokens_max: 200, step_logits_max: 30, ..BUDGET }, 1000);
        let mut plan = Plan::default();
        (0..num_decoding).for_each(|number| scheduler.enqueue(key(number), needs(prompt(number, 2), 30)));
        while scheduler.running.iter().filter(|entry| entry.decodes()).count() < num_decoding as usize {
            turn(&mut scheduler, &mut plan, &|_| 99);
        }
        (0..num_prompts).for_each(|number| scheduler.enqueue(key(100 + number), needs(prompt(100 + number, 150), 99)));
        turn(&mut scheduler, &mut plan, &|_| 99);
        let of_prompts = plan.chunks.iter().filter(|chunk| chunk.of_prompt).map(|chunk| chunk.places.len());
        assert_eq!(of_prompts.sum::<usize>(), tokens, "{num_decoding} decode, {num_prompts} read");
    }
}

#[test]
fn prompts_take_no_more_than_a_step_has_time_for() {
    let budget = Budget { step_tokens_max: 500, ..BUDGET };
    let mut scheduler = Scheduler::new(budget, 100);
    let mut plan = Plan::default();
    scheduler.enqueue(key(0), needs(prompt(0, 300), 9));
    turn_of(&mut scheduler, &mut plan, &|_| 999, 11);
    assert_eq!(places(&plan), [(0, 0..256)], "alone it has more time");
    turn_of(&mut scheduler, &mut plan, &|_| 999, 11);
    scheduler.enqueue(key(1), needs(prompt(1, 300), 9));
    turn_of(&mut scheduler, &mut plan, &|_| 999, 11);
    assert_eq!(places(&plan), [(0, 300..301), (1, 0..11)]);
}

/// Beside one that decodes: what is left of prompts takes whole steps where two of them are enough, and then none do for a while.
#[test]
fn a_burst_is_short_and_the_next_one_comes_later() {
    let budget = Budget { sequences_max: 40, step_tokens_max: 200, step_logits_max: 40, ..BUDGET };
    for (length, expected) in [(150, vec![150]), (390, vec![199, 191]), (450, vec![61, 199, 190])] {
        let mut scheduler = Scheduler::new(budget, 1000);
        let mut plan = Plan::default();
        scheduler.enqueue(key(0), needs(prompt(0, 2), 999));
        turn(&mut scheduler, &mut plan, &|_| 9999);
        let mut read = |scheduler: &mut Scheduler, number: u64| -> Vec<usize> {
            scheduler.enqueue(key(number), needs(prompt(number, length), 1));
            let mut tokens = Vec::new();
            for _ in 0..40 {
                turn(scheduler, &mut plan, &|key| if key.request == 0 { 9999 } else { length + 1 });
                tokens.extend(plan.chunks.iter().filter(|chunk| chunk.of_prompt).map(|chunk| chunk.places.len()));
            }
            tokens
        };
        assert!(read(&mut scheduler, 1).starts_with(&expected), "a prompt of {length}");
        assert!(read(&mut scheduler, 2).starts_with(&expected), "40 turns later");
        if length < 450 {
            // At once after the one before: the burst was 40 turns ago, then it is too soon.
            let (mut scheduler, mut plan) = (Scheduler::new(budget, 1000), Plan::default());
            scheduler.enqueue(key(0), needs(prompt(0, 2), 999));
            turn(&mut scheduler, &mut plan, &|_| 9999);
            let mut tokens = Vec::new();
            for number in 1..4 {
                scheduler.enqueue(key(number), needs(prompt(number, 150), 1));
                turn(&mut scheduler, &mut plan, &|key| if key.request == 0 { 9999 } else { 151 });
                tokens.extend(plan.chunks.iter().filter(|chunk| chunk.of_prompt).map(|chunk| chunk.places.len()));
            }
            assert_eq!(tokens, [150, 150, 61], "one after the other");
        }
    }
}

/// Those that wait for another to compute their beginning count like those that read.
#[test]
fn followers_are_part_of_a_burst() {
    let budget = Budget { sequences_max: 40, step_tokens_max: 200, step_logits_max: 40, ..BUDGET };
    for (num_followers, tokens) in [(0, 49), (1, 49), (2, 150)] {
        let (mut scheduler, mut plan) = (Scheduler::new(budget, 1000), Plan::default());
        (0..5).for_each(|number| scheduler.enqueue(key(number), needs(prompt(number, 2), 999)));
        turn(&mut scheduler, &mut plan, &|_| 9999);
        (0..=num_followers).for_each(|number| scheduler.enqueue(key(10 + number), needs(prompt(10, 150), 9)));
        turn(&mut scheduler, &mut plan, &|_| 9999);
        assert_eq!(places(&plan).last(), Some(&(10, 0..tokens)), "{num_followers} followers");
    }
}

/// Requests that arrive together: a long beginning in common is computed once, a short one is not waited for.
#[test]
fn a_beginning_in_common_is_computed_once() {
    let mut scheduler = Scheduler::new(BUDGET, 100);
    let mut plan = Plan::default();
    let with_end = |request: u32| prompt(0, 70).into_iter().chain([request; 9]).collect::<Vec<_>>();
    scheduler.enqueue(key(1), needs(with_end(1), 9));
    scheduler.enqueue(key(2), needs(with_end(2), 9));
    scheduler.enqueue(key(3), Needs { root: None, ..needs(with_end(3), 9) });
    scheduler.enqueue(key(4), needs(prompt(0, 30), 9));
    let mut admitted = Vec::new();
    for _ in 0..20 {
        turn(&mut scheduler, &mut plan, &|_| 99);
        admitted.extend(plan.admitted.iter().copied());
    }
    // 1 is computed, 3 keeps to itself, 4 has too little in common with 1 to wait.
    assert_eq!(admitted, [(key(1), 0), (key(3), 0), (key(4), 0), (key(2), 64)]);
    // What waits for a sequence goes on without it.
    let mut scheduler = Scheduler::new(BUDGET, 100);
    scheduler.enqueue(key(1), needs(with_end(1), 9));
    scheduler.enqueue(key(2), needs(with_end(2), 9));
    scheduler.plan(&mut plan, usize::MAX);
    assert_eq!(plan.admitted, [(key(1), 0)]);
    scheduler.remove(key(1));
    scheduler.plan(&mut plan, usize::MAX);
    assert_eq!(plan.admitted, [(key(2), 0)]);
}

/// Where answers are computed in another way than prompts, nothing of one is taken for the other.
#[test]
fn answers_that_differ_are_not_shared_and_no_chunk_has_both() {
    let mut scheduler = Scheduler::new(Budget { shares_answers: false, ..BUDGET }, 100);
    let mut plan = Plan::default();
    // An answer of 20 tokens, all of them 7.
    scheduler.enqueue(key(0), needs(prompt(0, 20), 20));
    while turn(&mut scheduler, &mut plan, &|_| 40).is_empty() {
        assert!(plan.chunks[0].of_prompt == plan.chunks[0].places.contains(&0));
    }
    // The next turn of a conversation, and a score of the same tokens.
    let next: Vec<TokenId> = prompt(0, 20).into_iter().chain([7; 30]).collect();
    scheduler.enqueue(key(1), needs(next.clone(), 1));
    scheduler.enqueue(key(2), Needs { num_prompt: 20, logits_from: 19, ..needs(next, 0) });
    scheduler.enqueue(key(3), needs(prompt(3, 30), 1));
    scheduler.plan(&mut plan, usize::MAX);
    assert_eq!(plan.admitted, [(key(1), 16), (key(2), 16), (key(3), 0)], "of the answer nothing is known");
    assert_eq!(places(&plan), [(1, 16..50), (2, 16..20), (3, 0..2)]);
    for chunk in &plan.chunks {
        scheduler.commit(chunk, chunk.places.end);
    }
    scheduler.remove(key(1));
    scheduler.plan(&mut plan, usize::MAX);
    assert_eq!(places(&plan), [(2, 20..28), (3, 2..29)]);
    assert_eq!(plan.chunks.iter().map(|chunk| chunk.of_prompt).collect::<Vec<_>>(), [false, true]);
    // What was a prompt's is known, if as that of a prompt alone.
    scheduler.enqueue(key(4), needs(prompt(0, 20).into_iter().chain([7; 30]).collect(), 1));
    scheduler.plan(&mut plan, usize::MAX);
    assert_eq!(plan.admitted, [(key(4), 48)]);
}

#[test]
fn places_with_logits_are_bounded_too() {
    let mut scheduler = Scheduler::new(BUDGET, 100);
    let mut plan = Plan::default();
    scheduler.enqueue(key(0), Needs { logits_from: 0, ..needs(prompt(0, 20), 0) });
    scheduler.plan(&mut plan, usize::MAX);
    assert_eq!(plan.chunks, [Chunk { key: key(0), places: 0..8, logits: 0..8, of_prompt: true }]);
}

#[test]
fn priority_goes_first_equals_in_order_and_waiting_makes_up_for_it() {
    let mut scheduler = Scheduler::new(Budget { sequences_max: 1, ..BUDGET }, 100);
    let mut plan = Plan::default();
    let enqueue = |scheduler: &mut Scheduler, request, priority| {
        scheduler.enqueue(key(request), Needs { priority, ..needs(prompt(request, 1), 1) });
    };
    enqueue(&mut scheduler, 0, 0);
    enqueue(&mut scheduler, 1, 0);
    enqueue(&mut scheduler, 2, 5);
    let mut order = Vec::new();
    while order.len() < 3 {
        order.extend(turn(&mut scheduler, &mut plan, &|_| 2));
    }
    assert_eq!(order, [key(2), key(0), key(1)]);

    // A stream of urgent requests does not keep the other from running for ever.
    enqueue(&mut scheduler, 3, 0);
    for request in 4.. {
        enqueue(&mut scheduler, request, 1);
        if turn(&mut scheduler, &mut plan, &|_| 2).contains(&key(3)) {
            assert!(request > 100, "priority has no effect");
            return;
        }
        assert!(request < 1000, "the other starves");
    }
}

#[test]
fn a_shared_beginning_is_found_in_the_cache() {
    let mut scheduler = Scheduler::new(BUDGET, 100);
    let mut plan = Plan::default();
    scheduler.enqueue(key(0), needs(prompt(0, 36), 1));
    while turn(&mut scheduler, &mut plan, &|_| 37).is_empty() {}
    assert_eq!(scheduler.pool().num_in_use(), 0);
    // The same prompt, a longer one, one of another salt, one that opts out, and one that wants logits from place 20 on.
    let same = needs(prompt(0, 36), 1);
    scheduler.enqueue(key(1), same.clone());
    scheduler.enqueue(key(2), needs(prompt(0, 50), 1));
    scheduler.enqueue(key(3), Needs { root: Some(Prefix::root("salt")), ..same.clone() });
    scheduler.enqueue(key(4), Needs { root: None, ..same.clone() });
    scheduler.enqueue(key(5), Needs { logits_from: 20, ..same });
    let mut admitted = Vec::new();
    while scheduler.num_running() + scheduler.waiting.len() > 0 {
        turn(&mut scheduler, &mut plan, &|_| 0);
        admitted.extend(plan.admitted.iter().copied());
    }
    assert_eq!(admitted, [(key(1), 32), (key(2), 32), (key(3), 0), (key(4), 0), (key(5), 16)]);
}

#[test]
fn choices_share_the_blocks_of_their_prompt() {
    let mut scheduler = Scheduler::new(BUDGET, 100);
    let mut plan = Plan::default();
    for choice in 0..3 {
        scheduler.enqueue(SequenceKey { request: 0, choice }, needs(prompt(0, 36), 5));
    }
    turn(&mut scheduler, &mut plan, &|_| 99);
    assert_eq!(plan.admitted.len(), 1);
    turn(&mut scheduler, &mut plan, &|_| 99);
    let (a, b) = (SequenceKey { request: 0, choice: 1 }, SequenceKey { request: 0, choice: 2 });
    assert_eq!(plan.admitted, [(a, 32)]);
    turn(&mut scheduler, &mut plan, &|_| 99);
    assert_eq!(plan.admitted, [(b, 32)]);
    assert_eq!(scheduler.blocks(a)[..2], scheduler.blocks(b)[..2]);
    assert_ne!(scheduler.blocks(a)[2], scheduler.blocks(b)[2]);
}

#[test]
fn a_parked_sequence_is_left_out_and_gives_its_blocks_when_they_are_needed() {
    let mut scheduler = Scheduler::new(BUDGET, 3);
    let mut plan = Plan::default();
    scheduler.enqueue(key(0), needs(prompt(0, 17), 9));
    turn(&mut scheduler, &mut plan, &|_| 99);
    scheduler.set_parked(key(0), true);
    scheduler.plan(&mut plan, usize::MAX);
    assert!(plan.chunks.is_empty());
    assert_eq!(scheduler.pool().num_in_use(), 2);
    scheduler.enqueue(key(1), needs(prompt(1, 20), 1));
    let ended = turn(&mut scheduler, &mut plan, &|_| 21);
    assert_eq!((ended, scheduler.num_preempted()), (vec![key(1)], 1));
    scheduler.set_parked(key(0), false);
    turn(&mut scheduler, &mut plan, &|_| 99);
    assert_eq!(plan.chunks[0].key, key(0));
    assert_eq!(plan.chunks[0].logits, 17..18, "logits that were taken are not computed again");
}

#[test]
fn when_blocks_run_out_the_lowest_rank_gives_way_and_comes_back() {
    let mut scheduler = Scheduler::new(BUDGET, 4);
    let mut plan = Plan::default();
    for request in 0..2 {
        scheduler.enqueue(key(request), Needs { root: None, ..needs(prompt(request, 16), 40) });
    }
    let mut order = Vec::new();
    for _ in 0..200 {
        order.extend(turn(&mut scheduler, &mut plan, &|_| 56));
    }
    assert_eq!(order, [key(0), key(1)]);
    assert!(scheduler.num_preempted() >= 1);
}

#[test]
fn drafts_are_planned_within_the_budget_and_the_length() {
    let mut scheduler = Scheduler::new(BUDGET, 100);
    let mut plan = Plan::default();
    scheduler.enqueue(key(0), needs(prompt(0, 2), 6));
    scheduler.enqueue(key(1), needs(prompt(1, 2), 20));
    turn(&mut scheduler, &mut plan, &|_| 99);
    scheduler.set_drafts(key(0), &[1; 16]);
    scheduler.set_drafts(key(1), &[2; 16]);
    scheduler.plan(&mut plan, usize::MAX);
    // Sequence 0 has 3 tokens of at most 8: 4 drafts leave room for the token after them. Sequence 1 takes what is left of 8.
    assert_eq!(places(&plan), [(0, 2..7), (1, 2..5)]);
    assert_eq!(plan.chunks[1].logits, 2..5);
    assert_eq!(scheduler.chunk_tokens(&plan.chunks[0]).collect::<Vec<_>>(), [7, 1, 1, 1, 1]);
    // One draft was right.
    scheduler.append(key(0), 1);
    scheduler.append(key(0), 9);
    scheduler.commit(&plan.chunks[0].clone(), 4);
    scheduler.plan(&mut plan, usize::MAX);
    assert_eq!(places(&plan)[0], (0, 4..5));
}

/// Nothing is drafted before the prompt is computed: the last token of it, left over by a step, is no token of an answer.
#[test]
fn a_prompt_that_leaves_one_token_over_has_no_drafts() {
    let mut scheduler = Scheduler::new(Budget { shares_answers: false, ..BUDGET }, 100);
    let mut plan = Plan::default();
    scheduler.enqueue(key(0), needs(prompt(0, 41), 20));
    turn(&mut scheduler, &mut plan, &|_| 99);
    scheduler.set_drafts(key(0), &[1; 4]);
    turn(&mut scheduler, &mut plan, &|_| 99);
    assert_eq!((places(&plan), plan.chunks[0].of_prompt), (vec![(0, 40..41)], true));
    scheduler.set_drafts(key(0), &[1; 4]);
    scheduler.plan(&mut plan, usize::MAX);
    assert_eq!((places(&plan), plan.chunks[0].of_prompt), (vec![(0, 41..46)], false));
}

proptest! {
    /// Blocks are conserved, the budget is kept, every sequence ends, and equals leave the queue in order.
    #[test]
    fn every_load_runs_to_its_end(
        load in prop::collection::vec((1usize..60, 1usize..40, -1i32..2, 0..4u8, 0usize..60), 1..40),
        num_blocks in 7usize..30,
        shares_answers in any::<bool>(),
        prompt_tokens in prop_oneof![1usize..60, Just(usize::MAX)],
    ) {
        let mut scheduler = Scheduler::new(Budget { shares_answers, ..BUDGET }, num_blocks);
        let mut plan = Plan::default();
        let mut arrivals = load.iter().copied().enumerate();
        let mut removed = Vec::new();
        let mut admitted: Vec<SequenceKey> = Vec::new();
        let lengths = |key: SequenceKey| load[key.request as usize].0 + load[key.request as usize].1;
        let mut parked: HashMap<SequenceKey, usize> = HashMap::new();
        for round in 0.. {
            prop_assert!(round < 20_000, "a sequence does not end");
            if let Some((index, (length, new, priority, kind, _))) = arrivals.next() {
                // Half of them share their beginning.
                let tokens = prompt(if kind < 2 { 0 } else { index as u64 }, length);
                let logits_from = if kind == 3 { 0 } else { length - 1 };
                scheduler.enqueue(key(index as u64), Needs { priority, logits_from, ..needs(tokens, new) });
            } else if scheduler.running.len() + scheduler.waiting.len() == 0 {
                break;
            }
            turn_of(&mut scheduler, &mut plan, &lengths, prompt_tokens);
            for (key, _) in &plan.admitted {
                if !admitted.contains(key) {
                    admitted.push(*key);
                }
            }
            prop_assert!(plan.chunks.iter().map(|chunk| chunk.places.len()).sum::<usize>() <= BUDGET.step_tokens_max);
            prop_assert!(plan.chunks.is_sorted_by_key(|chunk| chunk.of_prompt), "chunks of answers come first");
            for chunk in plan.chunks.iter().filter(|_| !shares_answers) {
                let length = load[chunk.key.request as usize].0;
                let within = if chunk.of_prompt { chunk.places.end <= length } else { chunk.places.start >= length };
                prop_assert!(within, "{:?} of a prompt of {}", chunk, length);
            }
            prop_assert!(plan.chunks.iter().map(|chunk| chunk.logits.len()).sum::<usize>() <= BUDGET.step_logits_max);
            let held: std::collections::HashSet<u32> =
                scheduler.running.iter().flat_map(|entry| entry.blocks.iter().copied()).collect();
            prop_assert_eq!(held.len(), scheduler.pool().num_in_use());
            for (index, &(_, new, _, _, at)) in load.iter().enumerate() {
                let key = key(index as u64);
                if at == round && index % 3 == 0 {
                    scheduler.remove(key);
                    removed.push(index);
                } else if at == round && index % 3 == 1 {
                    scheduler.set_parked(key, true);
                    parked.insert(key, round + new);
                } else if parked.get(&key) == Some(&round) {
                    scheduler.set_parked(key, false);
                }
            }
        }
        prop_assert_eq!(scheduler.pool().num_in_use(), 0);
    }

    /// Without cancels and slow readers, requests of equal priority leave the queue in order of arrival.
    #[test]
    fn equals_do_not_overtake_each_other(load in prop::collection::vec((1usize..60, 1usize..40, 0i32..2), 1..30)) {
        let mut scheduler = Scheduler::new(BUDGET, 9);
        let mut plan = Plan::default();
        for (index, &(length, new, priority)) in load.iter().enumerate() {
            scheduler.enqueue(key(index as u64), Needs { priority, ..needs(prompt(index as u64, length), new) });
        }
        let lengths = |key: SequenceKey| load[key.request as usize].0 + load[key.request as usize].1;
        let mut admitted: Vec<u64> = Vec::new();
        while scheduler.running.len() + scheduler.waiting.len() > 0 {
            turn(&mut scheduler, &mut plan, &lengths);
            for (key, _) in &plan.admitted {
                if !admitted.contains(&key.request) {
                    admitted.push(key.request);
                }
            }
        }
        for priority in 0..2 {
            let same: Vec<_> = admitted.iter().filter(|&&request| load[request as usize].2 == priority).collect();
            prop_assert!(same.is_sorted(), "{same:?}");
        }
    }
}
