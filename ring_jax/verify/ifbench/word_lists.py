# SPDX-License-Identifier: Apache-2.0
"""Words that IFBench's instructions are about."""

_PRONOUNS = """
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him
his himself she her hers herself it its itself they them their theirs themselves
"""
_PERSON_NAMES = """
Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte
Alexander Amelia Benjamin Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen
Abigail Gabriel Ella Jacob Scarlett Nathan Victoria Elijah Layla Nicholas Audrey David
Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan
"""
_STOP_WORDS = """
a about above after again against all am an and any are as at be because been before
being below between both but by can did do does doing down during each few for from
further had has have having he her here hers herself him himself his how i if in into is
it its itself just me more most my myself no nor not now of off on once only or other
our ours ourselves out over own same she should so some such than that the their theirs
them themselves then there these they this those through to too under until up very was
we were what when where which while who whom why will with you your yours yourself
yourselves d ll m o re s t ve y ain aren couldn didn doesn don hadn hasn haven isn ma
mightn mustn needn shan shouldn wasn weren won wouldn
"""
_CAPITALS = """
Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin
Berlin Amsterdam Warsaw London Brussels Prague Luxembourg Paris Vienna Bratislava
Budapest Vaduz Chisinau Bern Ljubljana Zagreb
"""

CONJUNCTIONS = frozenset({"and", "but", "for", "nor", "or", "so", "yet"})
PRONOUNS = frozenset(_PRONOUNS.split())
PERSON_NAMES = frozenset(_PERSON_NAMES.split())
"""Those that the instruction lists."""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""NLTK's for English, less those with an apostrophe: words are runs of letters here."""
CAPITALS = _CAPITALS.split()
"""Of Europe, north of 45 degrees, from north to south as published."""
