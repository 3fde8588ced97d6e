from PIL import Image

from vtw_demo.page.examples import load_examples, random_example


def test_every_example_can_be_shown_and_asked():
    examples = load_examples()
    assert len(examples) >= 6
    assert len({example.picture for example in examples}) == len(examples)
    for example in examples:
        with Image.open(example.picture) as picture:
            assert min(picture.size) >= 224
        assert example.question in example.suggestions
        assert len(set(example.suggestions)) == len(example.suggestions) >= 3


def test_a_random_scene_comes_with_questions_that_fit_it():
    first, questions = random_example(1)
    again, same_questions = random_example(1)
    other, _ = random_example(2)
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert questions == same_questions
    assert len(questions) >= 5
