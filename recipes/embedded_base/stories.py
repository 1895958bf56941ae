"""Generate short stories from seeded choices: a scene, a person, what goes wrong and how it ends."""

import random

import vocabulary as v

SCENES = {
    "a parcel": [
        "{a} waited for a parcel.|A parcel for {a} was on its way.|{a} looked out of the window for the courier.",
        "The tracking page said that the parcel was in {city}.|The courier had the wrong address.|Nobody was home.",
        "On {day} the courier came with the package.|At last the parcel arrived, only a little late.",
        "Inside was a {colour} {thing}.|In the package {a} found the {thing}.",
    ],
    "a bill": [
        "{a} opened a letter from the bank.|A bill came for {a} in {month}.|{a} looked at the invoice.",
        "It said {n} dollars, but the price was only {m} dollars.|The bill was too high.|The amount on the invoice was wrong.",
        "{a} had paid with a card.|{a} found the receipt of the payment.|The shop had charged the card twice.",
        "The shop said sorry and sent {n} dollars.|After the phone call the invoice was right.",
    ],
    "a forgotten password": [
        "{a} wanted to log in to the website.|{a} sat at the computer and typed a password.|{a} could not open the account.",
        "The password was wrong.|{a} had forgotten the password.|The account was locked.",
        "{b} helped to reset the password by email.|An email with a login code came to the phone.",
        "Then {a} changed the user name in the profile too.|Now the account was safe again.",
    ],
    "a broken app": [
        "{a} got a new app on the {machine}.|After the update the app on the {machine} was slow.|{a} opened the website.",
        "It crashed again and again.|The screen was blank.|An error message came when {a} pressed the button.|The screen froze.",
        "{b} found the bug in the program.|{b} loaded the page again.|They started the {machine} one more time.",
        "Then the video and the sound worked.|After that the app did not crash anymore.",
    ],
    "a wrong size": [
        "{a} bought a {colour} {cloth} in a shop.|{a} ordered a {cloth} for {n} dollars.|The new {cloth} came on {day}.",
        "It was too small.|The {cloth} did not fit.|It was damaged and had a scratch.|It was {colour2}, not {colour}.",
        "{a} put it in a box with a return label.|{a} sent it back to the shop.|{a} wanted to exchange it for a bigger size.",
        "The shop gave the money back.|{a} got a refund and was happy.|Soon the right one came.",
    ],
    "a club": [
        "{a} was a member of a music club.|{a} had a subscription for a paper.|{a} had a plan that ended in {month}.",
        "But {a} did not use it anymore.|The membership was too dear.|{a} did not want to renew the plan.",
        "So {a} wrote a letter to cancel the contract.|{a} asked {b} how to stop the subscription.|In {month} {a} ended it.",
        "{a} bought a {thing} with the money.|Now there was more time for {b}.",
    ],
    "a {animal}": [
        "There was a {adj} {animal} near the {place}.|A {animal} lived behind the {place}.|{a} had a {adj} {animal}.",
        "It was hungry and wanted {food}.|One day it ran away.|It was afraid of the {animal2}.|It could not sleep at night.",
        "{a} gave it some {food}.|{a} and {b} looked for it in the {place2}.|A {animal2} came to help.",
        "In the end the {animal} was {feel}.|Then they all went home.|The {animal} slept next to {a}.",
    ],
    "a day at the {place}": [
        "{a} and {b} went to the {place} on {day}.|On {day} {a} was at the {place}.|It was a warm day at the {place}.",
        "They saw a {colour} {thing}.|{b} lost a {thing} there.|It began to rain.|{a} met a {job}.",
        "They looked under the {furn}.|{b} asked a {job} for help.|They ate {food} and waited.",
        "Then they went home and were {feel}.|It was a good day.|{a} said thank you.",
    ],
    "{food}": [
        "{a} wanted to eat {food}.|{a} and {b} were hungry.|There was no {food} in the kitchen.",
        "They went to the market and bought {food} and {food2}.|{b} had some {food} in a bag.|The shop was closed on {day}.",
        "{a} cooked it and {b} washed the cups.|They sat at the table.|{a} gave half of it to {b}.",
        "It tasted good.|After that they were not hungry.|Both were {feel}.",
    ],
    "a lost {thing}": [
        "{a} could not find the {thing}.|The {colour} {thing} of {a} was gone.|{a} had lost a {thing}.",
        "It was not in the {place}.|{b} did not know where it was.|{a} looked in every room.",
        "Then {b} saw it under the {furn}.|A {job} had found it in the {place}.|The {animal} had it.",
        "{a} was {feel} and said thank you.|{a} never lost it again.",
    ],
    "a trip to {city}": [
        "{a} took the {vehicle} to {city}.|In {month} {a} and {b} travelled to {city}.|{a} wanted to see {city}.",
        "The {vehicle} was late.|The hotel was full.|It was cold and dark.|They had a heavy bag.",
        "A friendly {job} showed them the way.|They found a room near the {place}.|They drank tea and waited.",
        "Then they saw the {place} and were {feel}.|They came back on {day}.",
    ],
    "a gift": [
        "It was the birthday of {b}.|{a} wanted to give {b} a gift.|{b} was {n} years old on {day}.",
        "{a} had only {m} dollars.|The {thing} was too dear.|{a} did not know what {b} liked.",
        "So {a} made a {colour} {thing}.|{a} baked a cake.|{a} asked a {job}.",
        "{b} was {feel}.|{b} said: this is the best gift!",
    ],
}
FEELINGS = v.words("happy glad tired proud calm merry")


def slots(rng: random.Random) -> dict[str, str]:
    """Choose a value for every slot. A slot with a number differs from the slot without it."""
    a, b = rng.sample(v.NAMES, 2)
    animal, animal2 = rng.sample(v.ANIMALS, 2)
    food, food2 = rng.sample(v.FOOD, 2)
    colour, colour2 = rng.sample(v.COLOURS, 2)
    scene_place, place2 = rng.sample(v.PLACES, 2)
    m, n = sorted(rng.sample(range(2, 100), 2))
    single = {
        "city": v.CITIES,
        "day": v.DAYS,
        "month": v.MONTHS,
        "thing": v.OBJECTS,
        "cloth": v.CLOTHES,
        "machine": v.MACHINES[:4],
        "adj": ["small", "big", "old", "young", "clever", "lazy"],
        "job": v.JOBS,
        "furn": v.FURNITURE,
        "vehicle": v.VEHICLES,
        "feel": FEELINGS,
    }
    names = ("a", "b", "animal", "animal2", "food", "food2", "colour", "colour2", "place", "place2", "m", "n")
    values = dict(
        zip(names, (a, b, animal, animal2, food, food2, colour, colour2, scene_place, place2, m, n), strict=True)
    )
    return {key: str(value) for key, value in values.items()} | {key: rng.choice(some) for key, some in single.items()}


def story(rng: random.Random) -> tuple[str, str]:
    """Return the topic and the text of a story, with a sentence for each of the four beats of its scene."""
    topic, beats = rng.choice(list(SCENES.items()))
    values = slots(rng)
    text = " ".join(rng.choice(beat.split("|")).format(**values) for beat in beats)
    return topic.format(**values), text
