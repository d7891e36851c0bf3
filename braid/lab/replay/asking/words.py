"""Common English words of four letters: of one length, so that any number of them has a known size in bytes, and so
ordinary that nearly every tokenizer has most of them as one token."""

from __future__ import annotations

_WORDS = (
    "that this with from have they will were been said each what when your them then some make like into time "
    "look more come than made long down find over part only work know take year live back give most very just "
    "name good help line turn much mean same must here even land such home move need want well play read hand "
    "port self stay show form food four five nine zero last left keep next hard open life real near seem both "
    "talk stop side feet mile walk once book idea took mark head late mind hear base face half fact east west "
    "wood main cold girl size full hold fish ball plan star dark king town wind rock fire road room best able "
    "busy pass rain ship area foot slow blue deep moon warm free true week less city tree farm draw seen cost "
    "gold unit note fine drop ease hope step lost wide cell snow soil rich love told wait sign grew race fill "
    "path test view site code data page type file user link text list item mode case term role goal team game "
    "club song film news post mail card bill cash bank fund loan rate cent sale deal shop firm task tool kind "
    "sort rule laws vote poll army navy wars camp duty hall seat desk door wall roof yard park lake hill bird "
    "bear wolf lion frog milk meat rice corn salt soup cake wine beer dish bowl cook hole mass pure acid iron "
    "zinc coal wave heat cool calm loud soft flat thin tall huge tiny fast easy poor nice dear glad hurt pain "
    "care cure drug dose body bone skin hair eyes nose neck knee born grow dead died kill save hide seek pull "
    "push jump kick ride sail swim sing ring bell drum band tape disc copy edit send sent sold paid pays gave "
    "gone went came felt kept held runs uses goes does done else ever also away upon onto till soon past ages "
    "days hour noon date fall cuts lets join quit quiz exam math lens chip disk byte bits node root leaf seed "
    "tail core edge loop flow gate host wire wear suit coat shoe boot belt silk wool lace knot rope wrap pack "
    "load lift drag roll spin flip flag icon logo font bold grey pink gray fair dust sand clay lawn pond pool "
    "bath"
)
WORDS: tuple[str, ...] = tuple(f" {word}" for word in _WORDS.split())
"""Each with the space before it."""
