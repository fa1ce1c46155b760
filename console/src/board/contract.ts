// Types of the blackboard's part of the console API.

export interface BoardPost {
  id: string
  kind: string
  text: string
  room: string
  name: string
  program: string
  node: string
  author: string
  time: number
  reply_to: string
  thread: string
  to: string[]
  mine: boolean
  flagged: boolean
  retracted: boolean
  replies: number
}

export interface BoardPage {
  posts: BoardPost[]
  more: number
  cursor: string
}

export interface ClaimFacts {
  key: string
  room: string
  name: string
  program: string
  node: string
  author: string
  since: number
  until: number
  mine: boolean
  id: string
}

export interface RoomFacts {
  room: string
  posts: number
  last: number
}

export interface BoardFacts {
  enabled: boolean
  reason: string
  name: string
  node: string
  posts: number
  waiting: number
  flagged: string[]
}

export interface PostAnswer {
  post: BoardPost
  replaced: string
}

export interface ScrubPreview {
  text: string
  replaced: string
}
