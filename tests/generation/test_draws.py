import numpy as np
from chi_square import p_value

from lit_gpt.generation.sampler import uniform


def test_a_function_of_seed_position_and_stream():
    assert uniform(3, 5) == uniform(3, 5)
    assert (
        len({uniform(seed, position, stream) for seed in range(20) for position in range(20) for stream in range(3)})
        == 1200
    )


def test_uniform_along_positions_and_along_seeds():
    for numbers in ([uniform(1, n) for n in range(5000)], [uniform(n, 1) for n in range(5000)]):
        assert 0 <= min(numbers) < max(numbers) < 1
        counts = np.histogram(numbers, bins=50, range=(0, 1))[0].tolist()
        assert p_value(counts, [100] * 50) > 1e-3


def test_neighbours_are_independent():
    numbers = np.array([[uniform(seed, position) for position in range(200)] for seed in range(200)])
    for one, other in ((numbers[:, 1:], numbers[:, :-1]), (numbers[1:], numbers[:-1])):
        assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 0.02
