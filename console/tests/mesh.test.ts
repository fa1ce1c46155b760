import { describe, expect, it } from 'vitest'
import type { PeerStatus } from '../src/api'
import { layout } from '../src/mesh/layout'
import { chattable, modelsOf, reasonOf } from '../src/mesh/models'
import { nodesOf, type MeshNode } from '../src/mesh/nodes'
import { model, node, peer, serves, status } from './made'

describe('the nodes', () => {
  it('are this one, its peers and its backends', () => {
    const backends = [{ url: 'http://localhost:8000', healthy: true, models: ['x'], reason: '' }]
    const found = nodesOf(
      status([peer('a', { serves: [serves('m')] }), peer('b', { status: 'dead' })], { backends }),
      1000,
    )
    expect(found.map((one) => [one.name, one.role, one.status])).toEqual([
      ['here', 'standby', 'alive'],
      ['node a', 'host', 'alive'],
      ['node b', 'standby', 'dead'],
      ['localhost:8000', 'backend', 'alive'],
    ])
  })

  it('keep the moment at which a state began, though it is told a little differently each time', () => {
    const first = nodesOf(status([peer('a', { since_seconds: 10.4 })]), 1000)
    const later = nodesOf(status([peer('a', { since_seconds: 15.9 })]), 1005, first)
    expect(later[1]?.since).toBe(first[1]?.since)
    const changed = nodesOf(status([peer('a', { since_seconds: 0, status: 'suspect' })]), 1010, later)
    expect(changed[1]?.since).toBe(1010)
  })

  it('are told how fast they answered this node', () => {
    const load = [
      { target: 'a', active: 0, waiting: 0, slots: 4, kind: 'peer' as const, model: 'm', tokens_per_second: 33 },
    ]
    const [, there] = nodesOf(status([peer('a', { serves: [serves('m'), serves('n')] })], { load }), 1)
    expect(there?.models.map((one) => one.speed)).toEqual([33, null])
  })

  it('may be in a state or have a role that this page does not know yet', () => {
    const [here, there] = nodesOf(status([peer('a', { status: 'resting' as PeerStatus })]), 1)
    expect([here?.status, there?.status]).toEqual(['alive', 'unverified'])
  })
})

describe('the models', () => {
  const of = (made: ReturnType<typeof status>): ReturnType<typeof modelsOf> => modelsOf(made, nodesOf(made, 1))

  it('are one line each, the served ones first', () => {
    const peers = [
      peer('a', { serves: [serves('m')] }),
      peer('b', { serves: [serves('m')] }),
      peer('c', { on_disk: ['d', 'w'], wants: ['w', 'q'] }),
      peer('s', { serves: [serves('h')], status: 'suspect' }),
      peer('x', { serves: [serves('gone')], status: 'dead' }),
    ]
    const found = of(
      status(peers, {
        models: [model('f', 'fetching'), model('bad', 'failed', { reason: 'No room.', advice: 'Make some.' })],
      }),
    )
    expect(found.map((one) => [one.name, one.standing])).toEqual([
      ['m', 'serving'],
      ['f', 'coming'],
      ['bad', 'failed'],
      ['q', 'wanted'],
      ['w', 'wanted'],
      ['h', 'heard of'],
      ['d', 'on disk'],
    ])
    const [m] = found
    expect([m?.slots, m?.active, m?.hosts.length, m?.context]).toEqual([8, 2, 2, 4096])
    expect(found.map(reasonOf)).toEqual([
      'Served by 2 nodes.',
      'On its way.',
      'No room. Make some.',
      'Asked for by node c, but no node that is known has its file.',
      'Asked for by node c. node c has the file and may take it.',
      'node s said it serves this, but does not answer this node.',
      'Lies on the disk of node c; nobody asked for it. Serve it with --model d.',
    ])
  })

  it('are one line for each file, whatever it is called on which disk', () => {
    const both = { on_disk: ['known', 'known.Q4'], aliases: { 'known.Q4': 'known' } }
    const here = status([peer('a', { on_disk: ['known.Q4'] }), peer('b', both), peer('c', { on_disk: ['other'] })])
    const idle = of(here)
    expect(idle.map((one) => [one.name, one.onDisk, one.aliases])).toEqual([
      ['known', ['node a', 'node b'], ['known.Q4']],
      ['other', ['node c'], []],
    ])
    expect(reasonOf(idle[0]!)).toContain('Serve it with --model known.')

    // By whichever name it is served, or only wanted, that line has the file of all.
    for (const more of [{ serves: [serves('known.Q4')] }, { wants: ['known.Q4'] }]) {
      const live = of(status([peer('a', more), peer('b', both)]))
      expect(live.map((one) => [one.name, one.onDisk, one.aliases])).toEqual([['known.Q4', ['node b'], ['known']]])
    }

    // Two names by which callers can ask for it stay two.
    const two = of(
      status([peer('a', { serves: [serves('known')] }), peer('c', { wants: ['known.Q4'] }), peer('b', both)]),
    )
    expect(two.map((one) => [one.name, one.standing, one.onDisk, one.aliases])).toEqual([
      ['known', 'serving', ['node b'], []],
      ['known.Q4', 'wanted', ['node b'], []],
    ])
  })

  it('are not lost to a node that tells of aliases in a circle', () => {
    const odd = { on_disk: ['x', 'y'], aliases: { x: 'y', y: 'x', z: 'z' } }
    expect(of(status([peer('a', odd)])).map((one) => one.name)).toEqual(['y'])
  })

  it('see if somebody who carries them does, or may', () => {
    const peers = [
      peer('a', { serves: ['m', 'n', 'o'].map((name) => ({ ...serves(name), input_modalities: ['text'] })) }),
      peer('b', { serves: [{ ...serves('n'), input_modalities: ['text', 'image'] }, serves('o'), serves('p')] }),
    ]
    const models = [model('h', 'loading', { input_modalities: ['text'] }), model('q', 'fetching')]
    const found = new Map(of(status(peers, { models })).map((one) => [one.name, one.sees]))
    expect([...'mnophq'].map((name) => found.get(name))).toEqual([false, true, null, null, false, null])
  })

  it('can be chatted with if they write and somebody serves them', () => {
    const peers = [
      peer('a', { serves: [serves('m'), { ...serves('e'), purpose: 'embed' }, { ...serves('u'), purpose: null }] }),
    ]
    expect(chattable(of(status(peers, { models: [model('l', 'loading')] }))).map((one) => one.name)).toEqual([
      'm',
      'u',
      'l',
    ])
  })
})

describe('the picture', () => {
  const many = (count: number, more: (place: number) => Partial<MeshNode> = () => ({})): MeshNode[] => [
    node('me', { here: true }),
    ...Array.from({ length: count - 1 }, (_, place) => node(`n${String(place).padStart(4, '0')}`, more(place))),
  ]

  it.each([1, 2, 3, 9, 10, 30, 49, 50, 300, 1000])('holds %i nodes and none covers another', (count) => {
    for (const room of [
      [375, 600],
      [600, 600],
      [1000, 700],
      [1900, 600],
    ].map(([width = 0, height = 0]) => ({ width, height }))) {
      const { spots, width, height } = layout(
        many(count, (place) => (place % 3 === 0 ? { role: 'host' } : {})),
        room,
      )
      expect(spots).toHaveLength(count)
      const outside = spots.filter(
        (one) => Math.abs(one.x) + one.radius > width / 2 || Math.abs(one.y) + one.radius > height / 2,
      )
      expect(outside).toEqual([])
      const pairs = spots.flatMap((one, place) =>
        spots
          .slice(place + 1)
          .filter((other) => Math.hypot(one.x - other.x, one.y - other.y) <= one.radius + other.radius)
          .map((other) => [one.node.id, other.node.id]),
      )
      expect(pairs).toEqual([])
    }
  })

  it('does not move a node that only changes its state, and does not mind the order in which nodes are told', () => {
    const before = layout(many(40), { width: 1000, height: 700 })
    const after = layout(
      [
        node('me', { here: true }),
        ...many(40, (place) => (place === 7 ? { status: 'suspect' } : {}))
          .slice(1)
          .reverse(),
      ],
      { width: 1000, height: 700 },
    )
    const places = (found: typeof before): unknown => found.spots.map((spot) => [spot.node.id, spot.x, spot.y])
    expect(places(after)).toEqual(places(before))
  })
})
