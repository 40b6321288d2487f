use super::share;

#[test]
fn the_parts_of_a_limit_add_up_to_it_and_none_is_nothing() {
    for threads in 1..=9_usize {
        for limit in threads..=50 {
            let parts: Vec<usize> = (0..threads).map(|it| share(limit, it, threads)).collect();
            assert_eq!(parts.iter().sum::<usize>(), limit, "{parts:?}");
            let (least, most) = (parts.iter().min(), parts.iter().max());
            assert!(most <= least.map(|it| it.saturating_add(1)).as_ref());
        }
        for limit in 0..threads {
            assert!((0..threads).all(|it| share(limit, it, threads) == 1));
        }
    }
}
